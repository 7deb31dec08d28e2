"""Where the frames are: the choice, the bits of every batch, the thread that fetches ahead, the order of an epoch."""

from __future__ import annotations

import threading
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store
from every_pair import every_pair
from torch import Tensor

from fastmc.data.placed.order import ORDER_STREAM, epoch_order
from fastmc.data.placed.placement import DataConfig, FreeMemory, choose_place, free_memory, needed_memory, place_store
from fastmc.data.placed.resident import PlacedStore, ResidentStore, copy_frames, rounding_error
from fastmc.data.placed.streamed import AHEAD, THREAD_NAME, StreamedStore, run_ahead
from fastmc.data.store import PackedStore, StoreWriter
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.evaluation import represent
from fastmc.random import philox
from fastmc.skeleton import NTU25
from fastmc.views.clips import PackedClips

CPU = torch.device("cpu")
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
HOST_PLACES = ["pinned", "mapped"]
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def store(data_root) -> PackedStore:
    return PackedStore.open(data_root / "small")


def place(store: PackedStore, placement: str, dtype: str = "float32", device: str = "cpu") -> PlacedStore:
    return place_store(store, device, DataConfig(placement=placement, frames_dtype=dtype))[0]


def frames_of(clips: PackedClips, n: int) -> Tensor:
    """Clip n of a batch as (T_n, M_n, V, 3), read as `PackedClips` says it lies."""
    start, frames, bodies = (int(column[n]) for column in (clips.start, clips.num_frames, clips.num_bodies))
    return clips.frames[start : start + frames * bodies].view(frames, bodies, *clips.frames.shape[1:]).cpu()


def true_clip(store: PackedStore, n: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(store.clip(n).copy()).to(dtype)


def fetching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


# The bits


@pytest.mark.parametrize(
    ("device", "placement", "dtype", "size"), every_pair(DEVICES, ["device", *HOST_PLACES], DTYPES, [1, 7, 48, 100])
)
def test_every_batch_has_the_bits_of_the_store(device, placement, dtype, size, store):
    placed = place(store, placement, dtype, device)
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).to(placed.device)
    with closing(placed.batches(order, size)) as batches:
        seen = list(batches)
    assert [len(ids) for ids, _ in seen] == [min(size, 48 - first) for first in range(0, 48, size)]
    assert torch.equal(torch.cat([ids for ids, _ in seen]), order)
    for ids, clips in seen:
        assert clips.max_bodies == 2
        if placement != "device":
            assert torch.equal(placed.select(ids).frames, clips.frames)
            assert torch.equal(placed.select(ids).start, clips.start)
        assert {clips.frames.device, clips.start.device, clips.num_bodies.device} == {placed.device}
        for i, n in enumerate(ids.tolist()):
            torch.testing.assert_close(
                frames_of(clips, i), true_clip(store, n, getattr(torch, dtype)), rtol=0, atol=0, check_dtype=True
            )


@pytest.mark.parametrize("placement", HOST_PLACES)
def test_a_batch_from_the_host_holds_its_own_rows_and_no_more(placement, store):
    ids = torch.tensor([47, 4, 4, 0])  # in any order, and twice
    clips = place(store, placement).select(ids)
    rows = (store.num_frames * store.num_bodies)[ids.numpy()]
    assert len(clips.frames) == rows.sum()
    assert clips.start.tolist() == [0, *np.cumsum(rows)[:-1]]
    assert clips.start.dtype == clips.num_frames.dtype == clips.num_bodies.dtype == torch.int64
    assert torch.equal(frames_of(clips, 1), frames_of(clips, 2))


def mapped_file(address: int) -> str:
    """The file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if first <= address < end:
            return line.split(maxsplit=5)[-1]
    raise AssertionError("nothing is mapped there")


def test_float32_frames_on_the_cpu_are_the_file_itself_and_safe_to_write_to(tmp_path):
    store = write_small_store(tmp_path / "small", clips=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resident = ResidentStore(store)
    assert mapped_file(resident.frames.data_ptr()) == str(tmp_path / "small" / "frames.npy")
    resident.frames[0] = float("nan")
    PackedStore.open(tmp_path / "small").verify()


@pytest.mark.parametrize("placement", ["device", *HOST_PLACES])
def test_nobody_is_warned_of_a_read_only_map(placement, store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in DTYPES:
            place(store, placement, dtype).select(torch.arange(4))
    assert not store.frames.flags.writeable


# Rounding


@pytest.mark.parametrize(("placement", "dtype"), [("device", "float16"), ("pinned", "bfloat16"), ("mapped", "float16")])
def test_the_error_that_is_stated_is_the_largest(placement, dtype, store):
    placed, line = place_store(store, "cpu", DataConfig(placement=placement, frames_dtype=dtype))
    exact = torch.from_numpy(np.array(store.frames))
    worst = (exact.double() - exact.to(getattr(torch, dtype)).double()).abs().max().item()
    assert placed.rounding_error == worst > 0
    assert f"largest rounding error {worst:.3g} m" in line
    bound = 2.0 ** {"float16": -12, "bfloat16": -9}[dtype]  # half of the last bit, for |x| < 1, relative above
    assert worst <= bound * max(1.0, 2 * float(exact.abs().max()))
    assert placed.dtype == getattr(torch, dtype)
    placed, line = place_store(store, "cpu", DataConfig(placement=placement))
    assert placed.rounding_error == 0.0 and "rounding" not in line


class Reads(np.ndarray):
    """An array that notes how many rows are asked of it at a time."""

    rows: list[int]

    def __getitem__(self, key):
        found = np.asarray(self)[key]
        self.rows.append(len(found))
        return found


@pytest.mark.parametrize(
    ("chunk_rows", "dtype"), [(1, torch.float16), (7, torch.float32), (7, torch.float16), (20, torch.float16)]
)
def test_frames_are_read_a_chunk_at_a_time(chunk_rows, dtype):
    frames = np.random.default_rng(0).normal(size=(20, 5, 3)).astype(np.float32)
    noted = frames.view(Reads)
    noted.rows = []
    placed, error = copy_frames(noted, dtype, "cpu", chunk_rows=chunk_rows)
    assert max(noted.rows) <= chunk_rows
    assert sum(noted.rows) == 20
    assert torch.equal(placed, torch.from_numpy(frames).to(dtype))
    assert error == rounding_error(frames, dtype, chunk_rows=chunk_rows) == rounding_error(frames, dtype)
    assert error == np.abs(frames - placed.float().numpy()).max()


@pytest.mark.parametrize("placement", ["device", *HOST_PLACES])
def test_coordinates_that_float16_cannot_hold_are_refused(placement, tmp_path):
    settings = {"skeleton": NTU25, "fps": 30.0, "class_names": ["a"], "protocols": {}}
    with StoreWriter(tmp_path / "far", name="far", **settings) as writer:
        writer.add(np.full((3, 1, 25, 3), 7e4, np.float32), name="clip", label=0)
    far = PackedStore.open(tmp_path / "far")
    with pytest.raises(ValueError, match=r"frames_dtype = 'float16' cannot hold coordinates of 70000 m.*float32"):
        place(far, placement, "float16")
    assert place(far, placement, "bfloat16").rounding_error < 7e4 * 2**-8


# The choice


@pytest.mark.parametrize(
    ("device", "host", "place"),
    [
        (200, 0, "device"),
        (199, 200, "pinned"),
        (0, 200, "pinned"),
        (199, 199, "mapped"),
        (0, 0, "mapped"),
    ],
)
def test_auto_gives_the_frames_at_most_half_of_what_is_free(device, host, place):
    needed = {"device": 100, "pinned": 100, "mapped": 0}
    assert choose_place(DataConfig(), needed, FreeMemory(device, host), CPU)[0] == place


def test_pinned_memory_is_counted_as_torch_takes_it(store):
    size = store.frames.nbytes
    assert needed_memory(store, CPU, DataConfig()) == {"device": size, "pinned": size, "mapped": 0}
    on_gpu = needed_memory(store, torch.device("cuda"), DataConfig(frames_dtype="bfloat16"))
    assert on_gpu["device"] == size // 2
    assert on_gpu["pinned"] / 2 < size // 2 <= on_gpu["pinned"]
    assert on_gpu["pinned"].bit_count() == 1


@pytest.mark.parametrize(
    ("free", "kind", "words"),
    [
        (
            (1 << 40, 1 << 40),
            ResidentStore,
            "on cpu, its file mapped without a copy; they take at most 50% of the 1099511.6 MB",
        ),
        (
            (0, 1 << 40),
            StreamedStore,
            "in host memory, 2 batches fetched ahead; they would take more than 50% of the 0",
        ),
        ((0, 0), StreamedStore, "no memory, {mb} MB of float32 stay in the file, 2 batches fetched ahead as float32"),
    ],
)
def test_the_line_for_the_log_says_where_how_much_and_why(free, kind, words, store):
    placed, line = place_store(store, "cpu", free=FreeMemory(*free))
    assert type(placed) is kind
    assert words.format(mb=f"{store.frames.nbytes / 1e6:.1f}") in line
    assert f"{store.frames.nbytes / 1e6:.1f} MB" in line


def test_a_placement_that_does_not_fit_is_an_error_with_a_remedy(store):
    little = FreeMemory(device=1000, host=1000)
    for placement, others in (("device", "pinned or mapped"), ("pinned", "mapped")):
        with pytest.raises(ValueError, match=rf"placement = '{placement}' needs .* MB .*--placement auto, {others}"):
            place_store(store, "cpu", DataConfig(placement=placement), free=little)
    with pytest.raises(ValueError, match="--frames-dtype float16 for half of it"):
        place_store(store, "cpu", DataConfig(placement="device"), free=little)
    with pytest.raises(ValueError, match=r"pinned or mapped$"):
        place_store(store, "cpu", DataConfig(placement="device", frames_dtype="float16"), free=little)
    place_store(store, "cpu", DataConfig(placement="mapped"), free=little)
    exactly = FreeMemory(device=store.frames.nbytes, host=0)  # one who asks for it gets more than half
    place_store(store, "cpu", DataConfig(placement="device"), free=exactly)


def test_free_memory_is_that_of_this_machine():
    free = free_memory(CPU)
    assert free.device == free.host
    assert 1 << 20 < free.host < 1 << 50


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_frames_are_page_locked_and_batches_wait_for_their_copy(store):
    placed = place(store, "pinned", device="cuda")
    assert placed._frames.is_pinned()
    assert free_memory(torch.device("cuda")).device <= torch.cuda.get_device_properties(0).total_memory
    ids = torch.arange(48, device="cuda")
    with closing(placed.batches(ids, 5)) as batches:
        sums = [clips.frames.double().sum() for _ in range(3) for _, clips in batches]
    assert torch.stack(sums).sum().item() == pytest.approx(np.array(store.frames, np.float64).sum(), rel=1e-9)


# The thread


def test_work_runs_ahead_while_a_result_is_in_use_and_no_farther():
    reached = [threading.Event() for _ in range(10)]
    with closing(run_ahead(lambda i: reached[i].set() or i, range(10), AHEAD)) as results:
        for k in range(10):
            assert next(results) == k
            if k + AHEAD < 10:
                assert reached[k + AHEAD].wait(timeout=60), "nobody asked for it, and it is there"
            assert not any(event.is_set() for event in reached[k + AHEAD + 1 :])
    assert not fetching_threads()


@pytest.mark.parametrize("items", [0, 1, AHEAD, AHEAD + 1])
def test_all_results_come_in_order_and_the_thread_ends(items):
    assert list(run_ahead(lambda i: -i, range(items), AHEAD)) == [-i for i in range(items)]
    assert not fetching_threads()


@pytest.mark.parametrize("placement", HOST_PLACES)
def test_the_thread_ends_when_the_loop_fails(placement, store):
    placed = place(store, placement)

    def fail() -> None:
        with closing(placed.batches(torch.arange(48), 4)) as batches:
            for _ in batches:
                raise KeyError("in a step")

    with pytest.raises(KeyError) as caught:  # kept: its traceback keeps the loop's frame, and what that holds
        fail()
    assert not fetching_threads(), caught


def test_what_fails_in_the_thread_is_raised_where_the_batch_is_used(store):
    placed = place(store, "mapped")
    seen = []
    with pytest.raises(IndexError), closing(placed.batches(torch.tensor([0, 1, 2, 99]), 1)) as batches:
        seen.extend(ids.item() for ids, _ in batches)
    assert seen == [0, 1, 2]
    assert not fetching_threads()
    seen.clear()

    def work(i: int) -> int:
        if i == 3:
            raise OSError("the disk is gone")
        return i

    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(run_ahead(work, range(9), AHEAD))
    assert seen == [0, 1, 2]
    assert not fetching_threads()


# Evaluation


@pytest.mark.parametrize("placement", HOST_PLACES)
def test_evaluation_keeps_the_last_short_batch_in_every_placement(placement, store):
    encoder = BiGRU(BiGRUConfig(encoder="1x8"), ClipShape(25, 2))
    ids, told = torch.arange(48).flip(0), []
    crop = {"ratio": torch.full((48,), 0.9), "position": torch.full((48,), 0.5)}

    def represented(placed: PlacedStore, advance=lambda clips: None) -> Tensor:
        return represent(encoder, placed, ids, "joint", frames=8, **crop, batch_size=7, advance=advance)

    assert torch.equal(represented(place(store, placement), told.append), represented(ResidentStore(store)))
    assert told == [7] * 6 + [6]
    assert not fetching_threads()


# The order of an epoch


def test_an_epoch_s_order_is_a_permutation_keyed_by_seed_and_epoch():
    ids = torch.arange(100, 200)
    first = epoch_order(ids, seed=0, epoch=0)
    assert torch.equal(first.sort().values, ids)
    assert torch.equal(first, epoch_order(ids, seed=0, epoch=0))
    assert not torch.equal(first, epoch_order(ids, seed=0, epoch=1))
    assert not torch.equal(first, epoch_order(ids, seed=1, epoch=0))
    assert not torch.equal(epoch_order(ids, seed=0, epoch=1), epoch_order(ids, seed=1, epoch=0))
    assert epoch_order(ids[:0], 0, 0).shape == (0,)
    assert epoch_order(ids[:1], 0, 0).tolist() == [100]


def test_an_epoch_s_order_is_what_it_has_always_been():
    assert epoch_order(torch.arange(10), seed=0, epoch=0).tolist() == [8, 5, 2, 7, 3, 1, 6, 4, 9, 0]
    assert epoch_order(torch.arange(10), seed=2**31 - 1, epoch=750).tolist() == [2, 9, 7, 4, 5, 8, 6, 1, 0, 3]


def test_an_epoch_s_order_sorts_63_bit_keys_of_a_stream_that_no_view_draws_from():
    words = philox(5, torch.arange(1000), 3, 0, ORDER_STREAM).tolist()
    keys = [(w[0] << 32 | w[1]) >> 1 for w in words]
    assert epoch_order(torch.arange(1000), seed=5, epoch=3).tolist() == sorted(range(1000), key=keys.__getitem__)
    assert ORDER_STREAM > 3, "the views' numbers are 0..3"


def test_over_many_epochs_every_clip_is_everywhere_alike():
    """Chi-square of clip by place: 81 degrees of freedom, so 132 has probability 3e-4; and of what follows what."""
    clips, epochs = 10, 1000
    orders = torch.stack([epoch_order(torch.arange(clips), seed=7, epoch=epoch) for epoch in range(epochs)])
    places = torch.stack([(orders == clip).sum(dim=0) for clip in range(clips)]).double()
    expected = epochs / clips
    assert ((places - expected).square() / expected).sum() < 132
    pairs = torch.bincount((orders[:, :-1] * clips + orders[:, 1:]).flatten(), minlength=clips**2).double()
    pairs = pairs.view(clips, clips)
    assert not pairs.diagonal().any()
    off = pairs[~torch.eye(clips, dtype=torch.bool)]
    assert ((off - expected).square() / expected).sum() < 150  # about 89 degrees of freedom


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_epoch_s_order_is_the_same_on_the_gpu():
    ids = torch.arange(40_000)
    assert torch.equal(epoch_order(ids.cuda(), 1, 2).cpu(), epoch_order(ids, 1, 2))
