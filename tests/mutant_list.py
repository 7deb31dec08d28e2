"""The faults that `tests.mutants` plants: each small, plausible, and seen by a user in some result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: for people and --only.
        path: of the file; ``old`` occurs once in it and becomes ``new``.
        hints: files of tests that are tried first, as globs below tests/.
    """

    name: str
    path: str
    old: str
    new: str
    hints: tuple[str, ...]


def _mutant(name: str, path: str, old: str, new: str, *hints: str) -> Mutant:
    return Mutant(name, path, old, new, hints)


KERNELS = (
    _mutant(
        "sweep: mixed entries behind the end of the bank count",
        "kernels/sweep.py",
        'mixed = tl.where(m_k[None, :], mixed, float("-inf"))',
        "mixed = tl.where(m_k[None, :], mixed, mixed)",
        "test_kernels.py",
    ),
    _mutant(
        "combine: the target's share of the bank is added",
        "kernels/combine.py",
        "(rest - aim_rest) * b_f0",
        "(rest + aim_rest) * b_f0",
        "test_kernels.py",
    ),
    _mutant(
        "sweep: of equal rows the last one of a chunk is mined",
        "kernels/sweep.py",
        "larger = x > nearest[RANK]",
        "larger = x >= nearest[RANK]",
        "test_mining.py",
    ),
    _mutant(
        "combine: rows that two queries have mined count twice",
        "kernels/combine.py",
        "m_mined = (mined < K) & (tl.max(again.to(tl.int32), axis=1) == 0)",
        "m_mined = (mined < K) & (tl.max(again.to(tl.int32), axis=1) <= 1)",
        "test_mining.py",
    ),
    _mutant(
        "combine: lifted entries count beside what they were",
        "kernels/combine.py",
        "more = tl.where(m_lifted, new - tl.exp2(similar * scale - top), 0.0)",
        "more = tl.where(m_lifted, new, 0.0)",
        "test_other_losses.py",
    ),
    _mutant(
        "prepare: the ticket is not reset",
        "kernels/prepare.py",
        "if (i_block == 0) & (i_row == 0) & (i_column == 0):",
        "if (i_block == 0) & (i_row == 0) & (i_column == 1):",
        "test_kernels.py",
    ),
    _mutant(
        "bank: steps although the loss is not finite",
        "kernels/bank.py",
        "m_k = (o_k < BLOCK_K if EVEN_K else m_k) & finite",
        "m_k = o_k < BLOCK_K if EVEN_K else m_k",
        "interpreted/test_kernels.py",
        "test_kernels.py",
    ),
    _mutant(
        "bank: tiled mixing begins anew with every tile",
        "kernels/bank.py",
        "o_v = ((start % B).to(tl.int32) + o_k) % B",
        "o_v = o_k % B",
        "test_kernels.py",
    ),
    _mutant(
        "rows: the next row is read behind the last column",
        "kernels/rows.py",
        "mask = mask & (o_d < D)",
        "mask = mask & (o_d < BLOCK_D)",
        "test_kernels.py",
    ),
    _mutant(
        "attack: of a long clip only the last part has a length",
        "kernels/attack.py",
        "square += tl.sum(b_u * b_u)",
        "square = tl.sum(b_u * b_u)",
        "test_attack_kernel.py",
    ),
    _mutant(
        "views: long crops take the frame after for the frame before",
        "kernels/views.py",
        "tl.where(is_long, o_t + BLOCK_T, high)",
        "tl.where(is_long, o_t, high)",
        "test_views.py",
        "test_views_kernel.py",
    ),
    _mutant(
        "views: a mask takes whole joints and whole frames",
        "kernels/views.py",
        "present = present & ~(in_frame[:, None] & joint[None, :])",
        "present = present & ~(in_frame[:, None] | joint[None, :])",
        "test_views.py",
    ),
    _mutant(
        "draw: flip and noise change their numbers",
        "kernels/draw.py",
        "u_filter, u_sigma, u_flip, u_noise = _block",
        "u_filter, u_sigma, u_noise, u_flip = _block",
        "test_views_kernel.py",
        "test_views.py",
    ),
    _mutant(
        "update: the key encoder follows the weights of before",
        "kernels/update.py",
        "        b_query = tl.fma(b_velocity, -tl.load(p_lr), b_query)\n"
        "        b_key = tl.fma(b_key - b_query, -follow, b_key)\n",
        "        b_key = tl.fma(b_key - b_query, -follow, b_key)\n"
        "        b_query = tl.fma(b_velocity, -tl.load(p_lr), b_query)\n",
        "test_update_kernel.py",
    ),
)

OBJECTIVE = (
    _mutant(
        "bank: a coefficient of the paper",
        "fastmc/objective/bank.py",
        "COEFFICIENTS = (0.4, 0.3, 0.2, 0.1)",
        "COEFFICIENTS = (0.4, 0.3, 0.2, 0.0)",
        "test_model.py",
        "test_bank.py",
    ),
    _mutant(
        "bank: coefficients alternate",
        "fastmc/objective/bank.py",
        "[torch.arange(size, device=device) * len(COEFFICIENTS) // size]",
        "[torch.arange(size, device=device) % len(COEFFICIENTS)]",
        "test_bank.py",
    ),
    _mutant(
        "queue: of more features than it holds they begin in the wrong row",
        "fastmc/objective/chunked.py",
        "return (cursor + (count - kept) + torch.arange",
        "return (cursor + torch.arange",
        "test_bank.py",
    ),
    _mutant(
        "ascent: steps although the loss is not finite",
        "fastmc/objective/chunked.py",
        "            if not allowed:\n                return\n",
        "",
        "test_mc_step.py",
    ),
    _mutant(
        "attention: a target is spoilt before its student has it",
        "fastmc/objective/attention.py",
        "for i in reversed(order) if",
        "for i in order if",
        "test_chunked.py",
        "test_mc_step.py",
    ),
    _mutant(
        "attention: chunks of a tiled bank begin with any sample",
        "fastmc/objective/attention.py",
        "if self.tiled:  # every chunk",
        "if self.tiled and self.bank.is_cuda:  # every chunk",
        "test_chunked.py",
    ),
    _mutant(
        "chunked: rows that are mined count from the beginning of their chunk",
        "fastmc/objective/attention.py",
        "torch.cat([self._entries, places + start])",
        "torch.cat([self._entries, places])",
        "test_mining.py",
    ),
    _mutant(
        "cpp: of equal rows the last one is mined",
        "kernels/cpu/contrast.cpp",
        "place > 0 && logit > x[place - 1]",
        "place > 0 && logit >= x[place - 1]",
        "test_mining.py",
    ),
    _mutant(
        "ops: all losses have the first one's upstream gradient",
        "fastmc/objective/ops.py",
        "scaled = gradients * upstream.view(-1, 1, 1)",
        "scaled = gradients * upstream[0]",
        "test_ops.py",
        "test_loss.py",
    ),
    _mutant(
        "b2: metrics are those of the weak view",
        "fastmc/contrast_table.py",
        "B2 = Table((Row(0), Row(1), Row(2)), measured=2)",
        "B2 = Table((Row(0), Row(1), Row(2)))",
        "test_model.py",
        "test_mc_step.py",
    ),
)

VIEWS = (
    _mutant(
        "torch: noise on a masked axis",
        "fastmc/views/torch_views.py",
        'amplitude = std[changed[some], None] * params.column("axis_scale").flatten(0, 1)[changed[some]]',
        "amplitude = std[changed[some], None]",
        "test_views_torch.py",
    ),
    _mutant(
        "torch: jittered joints are not mirrored",
        "fastmc/views/torch_views.py",
        "chosen = jittered.gather(1, source)[..., None, None] > 0",
        "chosen = jittered[..., None, None] > 0",
        "test_views_torch.py",
        "test_views.py",
    ),
    _mutant(
        "numba: the filter lacks its last tap",
        "fastmc/views/numba_views.py",
        "min(size, t + reach + 1))",
        "min(size, t + reach))",
        "test_views.py",
        "test_views_numba.py",
    ),
    _mutant(
        "numba: bones from parents that are bones already",
        "fastmc/views/numba_views.py",
        "x[t, i] -= row[parents[i // width] * width + i % width]",
        "x[t, i] -= x[t, parents[i // width] * width + i % width]",
        "test_views.py",
        "test_views_numba.py",
    ),
    _mutant(
        "draw: a crop that is carried over is rounded down",
        "fastmc/views/draw.py",
        "length = ((2 * length * resized_to + frames) // (2 * frames)).clamp(1, resized_to)",
        "length = (length * resized_to // frames).clamp(1, resized_to)",
        "test_augment.py",
        "test_views_numba.py",
    ),
    _mutant(
        "order: all epochs have the first one's",
        "fastmc/data/placed/order.py",
        "torch.arange(len(ids), device=ids.device), epoch, 0, ORDER_STREAM)",
        "torch.arange(len(ids), device=ids.device), 0, 0, ORDER_STREAM)",
        "test_resident.py",
    ),
)

ATTACK = (
    _mutant(
        "attack: eta limits each frame",
        "fastmc/methods/attack.py",
        "torch.linalg.vector_norm(direction, dim=2).norm(dim=1)",
        "torch.linalg.vector_norm(direction, dim=2).amax(dim=1)",
        "test_attack.py",
    ),
    _mutant(
        "attack: missing bodies count in the length",
        "fastmc/methods/attack.py",
        ".masked_fill_(missing, 0)",
        ".masked_fill_(missing & False, 0)",
        "test_attack.py",
    ),
    _mutant(
        "a2mc: epsilon in the place of eta",
        "fastmc/methods/a2mc.py",
        "limit=self.config.attack_norm,",
        "limit=self.config.attack_lr,",
        "test_model.py",
        "test_figures.py",
    ),
    _mutant(
        "a2mc: the attack normalises by the batch",
        "fastmc/methods/a2mc.py",
        "with encoder.fixed():",
        "with torch.enable_grad():",
        "test_model.py",
    ),
    _mutant(
        "a2mc: a full bank is filled once more",
        "fastmc/methods/a2mc.py",
        "if clips_seen < self.config.bank_size:",
        "if clips_seen <= self.config.bank_size:",
        "test_model.py",
        "test_step.py",
        "test_train.py",
    ),
    _mutant(
        "a2mc: every step draws the coefficient of the first",
        "fastmc/methods/a2mc.py",
        "keyed_generator(self.setup.seed, step)",
        "keyed_generator(self.setup.seed, 0)",
        "test_model.py",
        "test_step.py",
    ),
)

ENCODERS = (
    _mutant(
        "gru: gates of a bias's gradient are in another order",
        "fastmc/encoders/recurrent.py",
        "for kind in (1, 3):",
        "for kind in (1,):",
        "test_recurrent.py",
    ),
    _mutant(
        "bigru: after the attack the input norm stays fixed",
        "fastmc/encoders/bigru.py",
        "            self.train(training)\n",
        "",
        "test_encoder.py",
        "test_model.py",
    ),
    _mutant(
        "norm: views share their statistics",
        "fastmc/encoders/norm.py",
        "view_as(view) for view in x.chunk(views)]",
        "view_as(view) for view in x.chunk(1)]",
        "test_encoder.py",
    ),
    _mutant(
        "amp: a loaded state does not reach the working copies",
        "fastmc/encoders/amp.py",
        "return self._versions != self._versions_now()",
        "return False",
        "interpreted/test_update_in_use.py",
        "test_step.py",
    ),
)

ENGINE = (
    _mutant(
        "resume: an epoch begins anew",
        "train/engine/loop.py",
        "self.epoch, self.batch, self.step, self.seconds = state.position",
        "self.epoch, _, self.step, self.seconds = state.position",
        "test_train.py",
    ),
    _mutant(
        "resume: the epoch's sums are lost",
        "train/engine/step.py",
        "self.sums.copy_(state.sums)",
        "self.sums.zero_()",
        "test_train.py",
    ),
    _mutant(
        "resume: the optimizer's state is lost",
        "fastmc/optim.py",
        'value.copy_(state["state"][index][name])',
        "value.zero_()",
        "test_optim.py",
        "test_optimizer.py",
        "test_train.py",
    ),
    _mutant(
        "step: a fault reaches the statistics",
        "train/engine/step.py",
        "torch.where(skip, before, now, out=now)",
        "torch.where(skip, now, now, out=now)",
        "test_step.py",
        "test_train.py",
    ),
    _mutant(
        "choices: streamed frames are captured in a graph",
        "train/engine/choices.py",
        "if not isinstance(store, ResidentStore):",
        "if store is None:",
        "test_choices.py",
    ),
    _mutant(
        "checkpoint: what came after it stays",
        "fastmc/checkpoint.py",
        "for path in before[:-keep] + after:",
        "for path in before[:-keep]:",
        "test_damage.py",
        "test_train.py",
    ),
    _mutant(
        "checkpoint: it is renamed before it is on disk",
        "fastmc/files.py",
        "        self._file.flush()\n        os.fsync(self._file.fileno())\n",
        "        self._file.flush()\n",
        "test_faulty_files.py",
    ),
    _mutant(
        "config: PKU-MMD's milestone",
        "fastmc/config.py",
        "milestones=(800,)",
        "milestones=(900,)",
        "test_train.py",
        "test_paper_page.py",
    ),
)

DATA = (
    _mutant(
        "ntu60: a training subject",
        "fastmc/data/formats/ntu_splits.py",
        "28, 31, 34, 35, 38)",
        "28, 31, 34, 35, 39)",
        "test_ntu120.py",
    ),
    _mutant(
        "ntu120: the last training setup",
        "fastmc/data/formats/ntu_splits.py",
        "tuple(range(2, 33, 2))",
        "tuple(range(2, 32, 2))",
        "test_ntu120.py",
    ),
    _mutant(
        "pku: frames are counted from 0",
        "fastmc/data/formats/pku.py",
        "joints[max(start, 1) - 1 : end]",
        "joints[max(start, 1) : end]",
        "test_pku.py",
    ),
    _mutant(
        "nw-ucla: labels are action numbers",
        "fastmc/data/formats/nw_ucla.py",
        "label = list(NWUCLA_CLASSES).index(action)",
        "label = min(action - 1, len(NWUCLA_CLASSES) - 1)",
        "test_clip_files.py",
    ),
    _mutant(
        "ntu: eleven frames are no longer noise",
        "fastmc/data/normalise.py",
        "len(body.frames) > SHORT_BODY]",
        "len(body.frames) >= SHORT_BODY]",
        "test_normalise.py",
    ),
)

EVALUATION = (
    _mutant(
        "knn: longer features are nearer",
        "fastmc/evaluation/knn.py",
        "return F.normalize(part.to(device), dim=1)",
        "return part.to(device)",
        "test_evaluation.py",
        "test_knn_tiles.py",
    ),
    _mutant(
        "linear: all random crops are the first",
        "fastmc/evaluation/features.py",
        "for _ in range(number + 1):",
        "for _ in range(1):",
        "test_evaluation.py",
    ),
    _mutant(
        "cache: another split has the same features",
        "fastmc/evaluation/cache.py",
        '            "clips": clips_digest(source),\n',
        "",
        "test_feature_cache.py",
    ),
    _mutant(
        "semi: the labelled clips are the first of the store",
        "fastmc/evaluation/finetune.py",
        'key=lambda n: hashlib.blake2b(f"{key}/{names[n]}".encode()).digest())',
        "key=lambda n: n)",
        "test_protocols.py",
    ),
)

TOOLS = (
    _mutant(
        "ledger: what a copy overwrites is read",
        "bench/counting.py",
        'if "copy" in name:',
        'if name == "copy":',
        "test_ledger_step.py",
    ),
    _mutant(
        "ledger: a multiprocessor's last programs are for free",
        "bench/ledger_rows.py",
        "ceil(programs / self.multiprocessors) / 4)",
        "(programs // self.multiprocessors) / 4)",
        "test_ledger.py",
    ),
)

FENCES = (
    _mutant(
        "combine: the ticket orders nothing",
        "kernels/combine.py",
        'tl.atomic_add(p_ticket, 1, sem="acq_rel")',
        'tl.atomic_add(p_ticket, 1, sem="relaxed")',
        "test_kernels.py",
    ),
    _mutant(
        "bank queue: the cursor may move before it is read",
        "kernels/bank.py",
        "    tl.debug_barrier()  # every thread has read the cursor\n",
        "",
        "test_kernels.py",
    ),
)
"""What no engine on a CPU runs wrongly: a GPU does, now and then."""

MUTANTS = (*KERNELS, *OBJECTIVE, *VIEWS, *ATTACK, *ENCODERS, *ENGINE, *DATA, *EVALUATION, *TOOLS, *FENCES)
