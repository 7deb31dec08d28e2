"""Figures: the numbers behind them against other computations of the same, and the files that the command writes."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import exit_code, write_small_store
from once import made_once
from PIL import Image
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from tiny_runs import ETA, tiny_runs

from fastmc.build import build_model
from fastmc.evaluation import represent
from fastmc.figures.attack import (
    TOP,
    AttackStates,
    attack_states,
    attack_strengths,
    describe_view,
    entropy,
    entropy_change,
    top_classes,
    visible_draw,
)
from fastmc.figures.curves import draw_curves
from fastmc.figures.draw_attack import animate_attack, draw_attack, frame_seconds
from fastmc.figures.history import History, curve
from fastmc.figures.neighbours import Strip, draw_neighbours, nearest
from fastmc.figures.skeletons import Front, front_of, side_by_side
from fastmc.figures.style import SMALL
from fastmc.figures.tsne import choose_classes, embed, loo_knn, scores_in_words
from fastmc.methods.a2mc import A2MC, X1, X2
from fastmc.methods.base import Batch
from fastmc.skeleton import NTU25
from fastmc.views.draw import STRONG, WEAK, AugmentConfig, ViewParams, identity_params
from train import figures
from train.command.datasets import open_dataset
from train.runs.figure_runs import DrawnRun, candidates, check_same_data, clips_of_classes, load_runs, run_labels

pytestmark = pytest.mark.slow

T, CLIPS = 4, 48


@pytest.fixture(scope="session")
def folders(data_root, tmp_path_factory) -> dict[str, Path]:
    """Two finished runs that differ in their method."""
    found = tiny_runs(tmp_path_factory, data_root)
    return {method: found[method] for method in ("a2mc", "b1")}


@pytest.fixture(scope="session")
def loaded(folders) -> DrawnRun:
    [only] = load_runs([folders["a2mc"]], device=torch.device("cpu"), data_root=None, protocol=None, placement="device")
    return only


@pytest.fixture(scope="session")
def pictures(folders, tmp_path_factory) -> Path:
    """All pictures of both runs, at 100 pixels an inch."""

    def draw(root: Path) -> None:
        runs = [argument for folder in folders.values() for argument in ("--run", str(folder))]
        out = ["--out", str(root / "new" / "folder"), "--dpi", "100", "--k", "3", "--clip", "clip0004"]
        assert figures.main([*runs, *out]) == 0

    return made_once(tmp_path_factory, "pictures", draw) / "new" / "folder"


def states_of(loaded: DrawnRun, clip: int, draw: int | None = None) -> AttackStates:
    ids = torch.tensor([clip])
    return attack_states(loaded.model, loaded.placed.select(ids), ids, draw=draw)


def test_a_perturbation_is_scaled_along_the_direction_of_the_attack(loaded):
    """At 0 and at its own length it is what training sees; rho is of one metre, and its clips are apart."""
    ids = torch.tensor([4, 7])
    found = attack_strengths(loaded.model, loaded.placed, ids, (0.0, 0.5, 1.0))
    np.testing.assert_allclose(found.norms, [0, ETA / 2, ETA])
    assert np.linalg.norm(found.rho.reshape(2, -1), axis=1) == pytest.approx(1, abs=1e-5)
    assert 0 < found.own.min() <= found.own.max() <= ETA * (1 + 1e-5)
    for n, clip in enumerate(ids.tolist()):
        states = states_of(loaded, clip)
        np.testing.assert_array_equal(found.x[n], states.joints[0])
        moved = found.x[n] + found.own[n] * found.rho[n]
        np.testing.assert_allclose(moved, states.joints[1], atol=1e-6)
        assert found.own[n] == pytest.approx(states.rho_norm)
        assert found.entropy[n, 0] == pytest.approx(entropy(states.distribution[0]), rel=1e-6)
        if found.own[n] == pytest.approx(ETA):
            assert found.entropy[n, 2] == pytest.approx(entropy(states.distribution[1]), rel=1e-5)
    assert found.own == pytest.approx(ETA), "else nothing was compared at its length"


def fake_states(bodies: int = 1, classes: int = 20) -> AttackStates:
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(4, T, bodies, 25, 3)).astype(np.float32)
    p = rng.dirichlet(np.ones(classes), 4).astype(np.float32)
    long = "frames 0-23 of 32; 15 joints jittered, rotation, left-right flip, noise, smoothing, x masked"
    return AttackStates(joints, p, 0.5, 0.5, ("whole", "rho", "shear", long), 0)


# --- Figure 3: the numbers


def test_bars_are_the_softmax_of_the_attack_heads_logits(loaded):
    clip = 4
    ids, one = torch.tensor([clip]), torch.ones(1)
    h = represent(loaded.model.query, loaded.placed, ids, "joint", frames=T, ratio=one, position=one)
    head = loaded.model.attack_head
    logits = h[0].double().numpy() @ head.weight.double().numpy().T + head.bias.double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum()
    states = states_of(loaded, clip)
    assert states.distribution.shape == (4, 128)
    np.testing.assert_allclose(states.distribution[0], expected, rtol=1e-5)
    np.testing.assert_allclose(states.distribution.sum(axis=1), 1.0, rtol=1e-5)


def test_perturbation_is_the_difference_of_the_first_two_states_and_within_eta(loaded):
    for clip in range(0, CLIPS, 5):
        states = states_of(loaded, clip, draw=0)
        rho = states.joints[1].astype(np.float64) - states.joints[0]
        assert states.rho_norm == pytest.approx(np.sqrt((rho**2).sum()), rel=1e-6)
        assert 0 < states.rho_norm <= states.limit * (1 + 1e-5)
        assert states.limit == ETA


@pytest.mark.parametrize("stream", ["joint", "motion", "bone"])
def test_views_are_those_of_a_training_step_in_the_runs_stream(stream, loaded):
    """The drawn joints, turned to the stream here, are what the model makes at that step for its encoder."""
    config = replace(loaded.config, stream=stream)
    model = build_model(config, loaded.store, torch.device("cpu"))
    ids = torch.tensor([4])
    clips = loaded.placed.select(ids)
    states = attack_states(model, clips, ids, draw=3)
    assert states.draw == 3
    assert states.joints.shape == (4, T, 2, 25, 3)
    batch = Batch(model.setup, model.views, clips, ids, 3)
    expected = batch.make(X1, X2, of=model.attacked(batch))
    for drawn, view in zip(states.joints[2:], expected[:, 0].unflatten(2, (25, 2, 3)).numpy(), strict=True):
        x = drawn.transpose(0, 2, 1, 3).astype(np.float64)  # (T, V, M, 3)
        if stream == "motion":
            x = np.concatenate([x[1:] - x[:-1], 0 * x[:1]])
        if stream == "bone":
            x = x - x[:, list(NTU25.parents)]
        np.testing.assert_allclose(view, x, atol=1e-5)
    with torch.no_grad():
        model.query.eval()
        logits = model.attack_head(model.query.represent(expected[1]))
    np.testing.assert_allclose(states.distribution[3], torch.softmax(logits[0], 0), rtol=1e-4)


def test_attack_raises_the_entropy_on_average(loaded):
    ids, told = torch.arange(CLIPS), []
    before, after = entropy_change(loaded.model, loaded.placed, ids, batch_size=20, advance=told.append)
    assert told == [20, 20, 8]
    assert before.shape == after.shape == (CLIPS,)
    assert after.mean() > before.mean()
    assert (after > before).mean() > 0.9
    states = states_of(loaded, 7, draw=0)
    np.testing.assert_allclose(entropy(states.distribution[:2]), [before[7], after[7]], rtol=1e-6)


def test_drawing_leaves_the_model_as_it_was(loaded):
    model = build_model(loaded.config, loaded.store, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mode = model.query.training, [p.requires_grad for p in model.parameters()]
    ids = torch.tensor([1])
    attack_states(model, loaded.placed.select(ids), ids)
    assert (model.query.training, [p.requires_grad for p in model.parameters()]) == mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_entropy_and_top_classes():
    p = np.random.default_rng(0).dirichlet(np.ones(30), 7)
    np.testing.assert_allclose(entropy(p), scipy_entropy(p, axis=1), rtol=1e-12)
    assert entropy(np.full(128, 1 / 128)) == pytest.approx(np.log(128))
    assert entropy(np.array([0.0, 1.0])) == 0
    assert top_classes(p[0]).tolist() == sorted(range(30), key=lambda c: -p[0, c])[:TOP]
    assert top_classes(np.array([0.2, 0.4, 0.4]), k=2).tolist() == [1, 2]


def test_default_draw_is_the_first_whose_strong_view_masks_no_axis(loaded):
    def flattened(draw: int) -> bool:
        strong = states_of(loaded, n, draw=draw).joints[3, :, 0]
        return bool((strong == 0).all(axis=(0, 1)).any())

    found = []
    for n in range(6):
        draw = visible_draw(loaded.model, loaded.placed.select(torch.tensor([n])), torch.tensor([n]))
        assert [flattened(d) for d in range(draw + 1)] == [True] * draw + [False]
        assert states_of(loaded, n).draw == draw
        found.append(draw)
    assert len(set(found)) > 1
    config = replace(loaded.config, augment=AugmentConfig(axis_mask_probability=1.0))
    model = build_model(config, loaded.store, torch.device("cpu"))
    assert visible_draw(model, loaded.placed.select(torch.tensor([0])), torch.tensor([0])) == 0, "where all are masked"
    with pytest.raises(ValueError, match="clips must be one clip, got 2"):
        attack_states(loaded.model, loaded.placed.select(torch.arange(2)), torch.arange(2))


def test_what_a_view_does_in_words():
    params = identity_params(torch.tensor([2]), torch.tensor([5]), 25)
    weak, strong = (ViewParams(params.table.clone(), 0, 0, params.sample, (number,)) for number in (WEAK, STRONG))
    assert describe_view(weak, 0, 32) == "frames 2-6 of 32; shear"
    weak.column("jittered")[0, 0, :4] = 1
    assert describe_view(weak, 0, 32) == "frames 2-6 of 32; 4 joints jittered"
    assert describe_view(strong, 0, 32) == "frames 2-6 of 32; shear, rotation"
    for name in ("flip", "noise_std", "filter_sigma"):
        strong.column(name)[:] = 0.5
    strong.column("axis_scale")[0, 0, 1] = 0
    said = "frames 2-6 of 32; shear, rotation, left-right flip, noise, smoothing, y masked"
    assert describe_view(strong, 0, 32) == said


# --- Figure 4 and neighbours: the numbers


def test_neighbours_are_scikit_learns(loaded):
    rng = np.random.default_rng(0)
    train, queries = rng.normal(size=(60, 12)), rng.normal(size=(9, 12))
    distance, index = NearestNeighbors(n_neighbors=5, metric="cosine").fit(train).kneighbors(queries)
    for query, far, expected in zip(queries, distance, index, strict=True):
        found, cosine = nearest(train, query, 5)
        assert found.tolist() == expected.tolist()
        np.testing.assert_allclose(cosine, 1 - far, atol=1e-12)
    with pytest.raises(ValueError, match=r"k must be in 1..60, the number of training clips, got 61"):
        nearest(train, queries[0], 61)
    train, test = loaded.clips()
    assert candidates(loaded, int(test[0]), 5).tolist() == train.tolist()
    assert candidates(loaded, int(train[3]), 5).tolist() == [n for n in train if n != train[3]], "not its own"


def test_embedding_has_a_point_a_clip_and_can_be_repeated():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    features = rng.normal(size=(40, 6)) + 6 * np.eye(6)[labels]
    first, second, other = (embed(features, labels, seed=seed) for seed in (0, 0, 1))
    assert first.points.shape == (40, 2)
    assert np.isfinite(first.points).all()
    np.testing.assert_array_equal(first.points, second.points)
    assert first.perplexity == 13.0
    assert other.knn == first.knn == 100.0
    assert first.silhouette == pytest.approx(silhouette_score(features, labels, metric="cosine"))
    # What is together in the features is together in the picture.
    assert loo_knn(first.points - first.points.mean(axis=0), labels) > 75


def test_embedding_of_few_clips_and_of_a_collapsed_encoder():
    """scikit-learn's t-SNE of equal features ends the process."""
    rng = np.random.default_rng(0)
    few = embed(rng.normal(size=(3, 5)), np.zeros(3, int))
    assert few.points.shape == (3, 2) and few.perplexity == pytest.approx(2 / 3)
    assert few.silhouette is None and few.knn == 100.0
    with pytest.raises(ValueError, match="needs 3 clips at least, got 2"):
        embed(rng.normal(size=(2, 5)), np.zeros(2, int))
    found = embed(np.ones((6, 4), np.float32), np.array([0, 0, 0, 1, 1, 1]))
    assert found.collapsed
    assert scores_in_words(found) == "collapsed: all features are equal"


def test_leave_one_out_is_that_of_a_plain_loop_and_classes_are_chosen_among_those_that_occur():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    hits = 0
    for n, f in enumerate(features):
        others = [m for m in range(30) if m != n]
        cosine = [f @ features[m] / np.linalg.norm(f) / np.linalg.norm(features[m]) for m in others]
        hits += labels[others[int(np.argmax(cosine))]] == labels[n]
    assert loo_knn(features, labels) == pytest.approx(100 * hits / 30)
    labels = np.repeat(np.arange(0, 60, 2), 3)
    chosen = choose_classes(labels, 10, seed=1)
    assert len(set(chosen.tolist())) == 10 and set(chosen) <= set(labels) and (np.diff(chosen) > 0).all()
    assert chosen.tolist() != choose_classes(labels, 10, seed=2).tolist()
    assert choose_classes(np.array([4, 1, 4])).tolist() == [1, 4]


# --- Drawing


def test_bars_are_as_high_as_the_distribution_and_columns_share_their_scale():
    states = fake_states()
    figure = draw_attack(states, NTU25)
    for axes, p in zip(figure.axes[4:], states.distribution, strict=True):
        steps = axes.patches[0].get_data().values
        np.testing.assert_array_equal(steps, p)
        highlighted = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches[1:]}
        assert [bar.get_width() for bar in axes.patches[1:]] == [1.0] * 5, "as wide as a class, as the others are"
        assert highlighted == {c: p[c] for c in np.argsort(-p)[:5]}
        assert f"entropy {scipy_entropy(p.astype(float)):.4f} nats" in axes.texts[0].get_text()
    for group in (figure.axes[:4], figure.axes[4:]):
        assert len({(axes.get_xlim(), axes.get_ylim()) for axes in group}) == 1
    query = Strip(np.random.default_rng(0).normal(size=(20, 1, 25, 3)), "q", "bow", 30.0)
    wide = replace(query, clip=query.clip * np.linspace(0.1, 3, 20)[:, None, None, None])
    for columns in (figure.axes[:4], draw_neighbours(query, [wide], NTU25).axes[1::2]):
        assert columns[0].get_xlim() == columns[1].get_xlim()
        for axes in columns:  # nothing of a skeleton is outside
            assert axes.get_aspect() == 1.0
            points = np.concatenate([dots.get_offsets() for dots in axes.collections])
            low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
            assert (points > low).all() and (points < high).all()


def test_curves_show_what_was_measured():
    rows = [{"epoch": e, "loss": 2.0 / e, "top1": 0.2 * e, "feature_std": 0.01 * e} for e in (1, 2, 3)]
    rows[1]["knn_top1"] = 40.0
    assert curve(rows, "knn_top1") == ([2], [40.0])
    figure = draw_curves({"one": History(rows, A2MC.metrics, 64), "two": History(rows[:2], A2MC.metrics, 64)})
    loss, contrast, spread, probe = figure.axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 2], [2, 1], [3, 2 / 3]], [[1, 2], [2, 1]]]
    assert contrast.lines[0].get_ydata() == pytest.approx([20, 40, 60])
    assert spread.lines[-1].get_ydata() == pytest.approx([1 / 8, 1 / 8])
    assert probe.lines[0].get_xydata().tolist() == [[2, 40]]
    assert loss.lines[0].get_color() != loss.lines[1].get_color()
    assert loss.lines[0].get_linestyle() != loss.lines[1].get_linestyle()


def test_animation_lasts_as_long_as_its_clip(tmp_path):
    assert frame_seconds(96, 30.0, 64) == 0.05
    assert frame_seconds(20, 30.0, 64) == 0.02  # no player shows less
    told: list[int] = []
    animate_attack(fake_states(bodies=2), NTU25, tmp_path / "a.gif", seconds=0.07, advance=told.append)
    assert told == [1] * T
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == T
        assert gif.info["duration"] == 70
        assert gif.info["loop"] == 0
        frames = []
        for n in range(T):
            gif.seek(n)
            frames.append(np.asarray(gif.convert("L"), dtype=int))
    for earlier, later in pairwise(frames):
        assert (earlier != later).mean() > 0.005
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_front_is_seen_upright_and_poses_stand_on_their_marks():
    """Body up is z, its left is towards -x: the picture's axes are -x and z, so that left is on the right."""
    clip = np.zeros((1, 1, 25, 3))
    clip[0, 0, NTU25.spine] = (0, 0, 0.5)
    clip[0, 0, NTU25.left_shoulder] = (-0.2, 0, 0.7)
    clip[0, 0, NTU25.right_shoulder] = (0.2, 0, 0.7)
    front = front_of(clip, NTU25)
    assert front == Front(0, 2, (-1.0, 1.0))
    assert front.flat(clip)[0, 0, NTU25.left_shoulder].tolist() == [0.2, 0.7]
    assert front.up_label == "z, up (m)"
    assert front_of(np.concatenate([0 * clip, clip], axis=1), NTU25).signs == front.signs, "the first place is empty"
    unknown = replace(NTU25, spine=-1, hip=-1)
    assert front_of(clip, unknown).up_label == "y (m)", "which axis is up is not known"
    poses = np.random.default_rng(0).normal(size=(3, 2, 25, 3))
    poses[1] = 0  # nobody there
    across = side_by_side(poses, front, 2.0)[..., 0]
    assert [(across[i].max() + across[i].min()) / 2 for i in (0, 2)] == pytest.approx([0, 4])
    assert (across[1] == 0).all()


# --- The command


def svg_text(path: Path) -> list[str]:
    texts = [element for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]
    return ["".join(element.itertext()).strip() for element in texts]


EXPECTED_TEXT = {
    "attack": ("probability", "class of FC", "frame of the view (T = 4)", "5 largest", "left", "right", "body 2"),
    "tsne": ("t-SNE 1", "t-SNE 2", "swing 0", "swing 1", "swing 2", "method a2mc", "method b1"),
    "curves": ("loss (nats)", "std of feature elements", "kNN probe, top-1 (%)", "epoch", "method a2mc", "method b1"),
    "neighbours": ("y, up (m)", "query", "clip0004", "swing 1", "left", "right", "body 2"),
}


def test_command_writes_pictures_of_the_right_size_whose_words_are_text(pictures):
    assert {p.name for p in pictures.iterdir()} == {
        "attack.gif",
        *(f"{name}.{suffix}" for name in EXPECTED_TEXT for suffix in ("png", "svg")),
    }
    for name, words in EXPECTED_TEXT.items():
        texts = svg_text(pictures / f"{name}.svg")
        assert set(words) <= set(texts), texts
        content = (pictures / f"{name}.svg").read_text()
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", content)]
        assert len(sizes) > 5 and min(sizes) >= SMALL
        svg = ElementTree.parse(pictures / f"{name}.svg").getroot()
        inches = [float(svg.attrib[side].removesuffix("pt")) / 72 for side in ("width", "height")]
        assert inches[0] == pytest.approx(7.0)
        with Image.open(pictures / f"{name}.png") as image:
            assert image.width == 700 and image.height == pytest.approx(100 * inches[1], abs=1)
            assert 0.01 < (np.asarray(image.convert("L")) < 250).mean() < 0.6


def test_pictures_say_the_measured_numbers(pictures, loaded):
    """The command's numbers, computed here once more."""
    clip = 4
    states = states_of(loaded, clip)
    texts = svg_text(pictures / "attack.svg")
    for h in entropy(states.distribution):
        assert f"entropy {h:.4f} nats" in texts
    assert f"‖ρ‖ = {states.rho_norm:.3g} m (η = {ETA} m)" in texts
    test = torch.from_numpy(loaded.clips()[1])
    before, after = (h.mean() for h in entropy_change(loaded.model, loaded.placed, test))
    title = f"mean entropy over {len(test)} test clips {before:.4f} nats before attack, {after:.4f} after"
    assert title in " ".join(texts)

    train = loaded.clips()[0]
    order, cosines = nearest(loaded.features(train), loaded.features(np.array([clip]))[0], 3)
    words = " ".join(svg_text(pictures / "neighbours.svg"))
    for n, cosine in zip(train[order], cosines, strict=True):
        verdict = "same" if loaded.store.label[n] == loaded.store.label[clip] else "other"
        assert f"{verdict} class, cosine {cosine:.3f} swing {loaded.store.label[n]} clip{n:04d}" in words

    ids = clips_of_classes(loaded, 0)
    panel = embed(loaded.features(ids), loaded.store.label[ids])
    assert f"1-NN {panel.knn:.1f} %, silhouette {panel.silhouette:.2f}" in svg_text(pictures / "tsne.svg")


def test_pictures_of_one_run_go_to_its_folder_and_need_no_more_than_they_show(folders, tmp_path, capsys):
    """A run without metrics is one that was made of a released checkpoint; curves need neither checkpoint nor data."""
    imported, bare = Path(shutil.copytree(folders["b1"], tmp_path / "imported")), tmp_path / "bare"
    (imported / "metrics.csv").unlink()
    assert figures.main(["--run", str(imported), "--only", "tsne", "curves"]) == 0
    assert "curves are left out: " in capsys.readouterr().err
    assert {path.name for path in (imported / "figures").iterdir()} == {"tsne.png", "tsne.svg"}
    assert {"untrained", "pre-trained"} <= set(svg_text(imported / "figures" / "tsne.svg"))
    bare.mkdir()
    for name in ("config.json", "metrics.csv"):
        shutil.copy(folders["b1"] / name, bare)
    assert figures.main(["--run", str(bare), "--only", "curves"]) == 0
    assert {"epoch", "L1", "Training of bare"} <= set(svg_text(bare / "figures" / "curves.svg"))


def test_labels_are_what_differs_or_the_folders_names(folders, tmp_path):
    a2mc, b1 = folders["a2mc"], folders["b1"]
    assert run_labels([a2mc, b1]) == ["method a2mc", "method b1"]
    assert run_labels([a2mc]) == ["run_a2mc"]
    same, twin = (Path(shutil.copytree(a2mc, tmp_path / name / "same")) for name in ("one", "two"))
    assert run_labels([a2mc, same]) == ["run_a2mc", "same"]
    assert run_labels([same, twin]) == [str(same), str(twin)]
    config = json.loads((twin / "config.json").read_text())
    config |= {"seed": 5, "frames": 16, "optim": config["optim"] | {"epochs": 9}}
    (twin / "config.json").write_text(json.dumps(config))
    assert run_labels([a2mc, twin]) == ["frames 4, epochs 2, seed 0", "frames 16, epochs 9, seed 5"]
    config["augment"]["shear"] = 0.1
    (twin / "config.json").write_text(json.dumps(config))
    assert run_labels([a2mc, twin]) == ["run_a2mc", "same"]


def test_errors_say_what_is_wrong_and_nothing_is_written(folders, tmp_path, capsys):
    out = tmp_path / "out"
    for arguments, message in (
        (["--clip", "clip00044"], r"has no clip 'clip00044' \(it holds 48\); did you mean clip0044"),
        (["--only", "neighbours", "--k", "25"], r"k = 25 must be in 1\.\.24, the number of training clips of xsub"),
        (["--protocol", "xset"], "has no protocol 'xset'; there are: xsub, xview"),
        (["--dpi", "7"], "dpi must be >= 50"),
        (["--only"], "--only names no picture; choose from attack, tsne, curves, neighbours"),
    ):
        assert exit_code(figures.main, ["--run", str(folders["a2mc"]), "--out", str(out), *arguments])
        assert re.search(message, capsys.readouterr().err)
        assert not out.exists()


def test_folders_that_are_no_runs(folders, tmp_path, capsys):
    run, no_run, file, bare = folders["a2mc"], tmp_path / "empty", tmp_path / "file", tmp_path / "bare"
    file.write_text("")
    for folder in (no_run, bare):
        folder.mkdir()
    shutil.copy(run / "config.json", bare)
    for arguments, message in (
        ([], "--run is missing: name a run folder"),
        (["--run", no_run], f"{no_run} is no run folder"),
        (["--run", run, "--run", no_run, "--only", "curves"], f"{no_run} is no run folder"),
        (
            ["--run", bare, "--only", "curves"],
            f"{bare / 'metrics.csv'} holds no epoch: the run's first is not",
        ),
        (["--run", run, "--run", f"{run}/."], "is named twice; name each run once"),
        (["--run", bare, "--only", "tsne"], "holds no complete checkpoint"),
        (["--run", run, "--out", file], f"--out {file} is a file; name a folder"),
    ):
        assert figures.main(list(map(str, arguments))) == 1
        assert message in capsys.readouterr().err


def test_runs_of_other_clips_are_not_compared(loaded, tmp_path):
    other = replace(loaded, store=write_small_store(tmp_path / "other", seed=5), folder=tmp_path)
    with pytest.raises(ValueError, match=r"are of different clips \(small xsub and other xsub\)"):
        check_same_data([loaded, loaded, other])
    other = replace(loaded, config=replace(loaded.config, protocol="xview"))
    with pytest.raises(ValueError, match=r"are of different clips \(small xsub and small xview\)"):
        check_same_data([loaded, other])
    check_same_data([loaded, replace(loaded, store=open_dataset("small", loaded.store.path.parent))])
