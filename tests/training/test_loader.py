"""The training loader: batches as planned, resumed without a difference, in memory that is used again when free."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from langdepth.data.base import open_dataset
from langdepth.data.transforms import Augmentation, TrainTransform
from langdepth.errors import ImageError, LangdepthError
from langdepth.records import Batch, InputSpec, Sample
from langdepth.training.loaders import TrainingLoader, TrainingSet, _Places, collate
from langdepth.training.sampling import BatchPlan, Draw, Sizes, training_shapes
from tests.helpers import write_folder

SPEC = InputSpec(area=32 * 32, multiple_of=16)
ASPECTS = (4 / 3, 3.0)


@pytest.fixture
def training_set(tmp_path: Path) -> TrainingSet:
    """12 images, 4 of them wide."""
    root = write_folder(tmp_path, [{"size": (32, 96) if i % 3 == 0 else (36, 48)} for i in range(12)])
    augmentation = Augmentation(rotate_probability=1, zoom_probability=1, cut_depth=0.5, erase=0.5)
    return TrainingSet(open_dataset("folder", root), TrainTransform(augmentation, 32 * 32))


def loader(training_set: TrainingSet, workers: int = 0, seed: int = 0, batch_size: int = 2) -> TrainingLoader:
    sizes = Sizes(SPEC, ASPECTS)
    shapes = training_shapes(training_set.dataset, sizes)
    draws = BatchPlan(shapes=shapes, sizes=sizes.sizes, weights=[1.0] * len(shapes), batch_size=batch_size, seed=seed)
    return TrainingLoader(training_set, draws, workers)


def same(one: Batch, other: Batch) -> bool:
    tensors = ("image", "depth", "mask", "scene")
    return one.path == other.path and all(torch.equal(getattr(one, n), getattr(other, n)) for n in tensors)


def test_a_draw_always_gives_the_same_sample_whatever_else_is_random(training_set: TrainingSet) -> None:
    draw = Draw(1, (32, 32), 42)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = training_set[draw]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one.image, training_set[draw].image)
    assert torch.equal(one.depth, training_set[draw].depth)
    assert not torch.equal(one.image, training_set[Draw(1, (32, 32), 43)].image)


def test_collate_stacks_every_field() -> None:
    ones = torch.ones(1, 2, 4)
    samples = [
        Sample(image=torch.zeros(3, 2, 4), depth=ones, mask=ones > 0, scene=3, text="a", path="p"),
        Sample(image=torch.ones(3, 2, 4), depth=ones * 2, mask=ones > 1),
    ]
    batch = collate(samples)
    assert batch.image.shape == (2, 3, 2, 4)
    assert batch.depth[:, 0, 0, 0].tolist() == [1, 2]
    assert batch.mask[:, 0, 0, 0].tolist() == [True, False]
    assert (batch.scene.tolist(), batch.scene.dtype) == ([3, -1], torch.int64)
    assert (batch.text, batch.path) == (["a", None], ["p", ""])


def test_the_loader_hands_out_what_the_plan_says_epoch_after_epoch(training_set: TrainingSet) -> None:
    batches = loader(training_set)
    assert len(batches) == 6
    for epoch in range(2):
        planned = batches.plan.draws.epoch(epoch)
        found = list(batches)
        assert [b.path for b in found] == [
            [str(training_set.dataset.rows[d.index].path_rgb) for d in p] for p in planned
        ]
        assert all(tuple(b.image.shape) == (2, 3, *p[0].size) for b, p in zip(found, planned, strict=True))
        assert sorted(path for b in found for path in b.path) == sorted(
            str(r.path_rgb) for r in training_set.dataset.rows
        )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [1, 5, 6, 8])
def test_resuming_in_mid_epoch_gives_exactly_the_rest(training_set: TrainingSet, stop: int, workers: int) -> None:
    reference = loader(training_set)
    whole = [*reference, *reference]  # two epochs of six batches
    state = None
    interrupted = loader(training_set, workers)
    handed_out = 0
    while state is None:
        for _ in interrupted:
            handed_out += 1
            if handed_out == stop:
                state = interrupted.state_dict()
                break
    assert state == {"epoch": stop // 6, "batches": stop % 6}
    resumed = loader(training_set, workers)
    resumed.load_state_dict(state)
    rest = list(resumed)
    while resumed.state_dict()["epoch"] < 2:
        rest += list(resumed)
    assert len(rest) == 12 - stop
    assert all(same(one, other) for one, other in zip(rest, whole[stop:], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["4.png", "4_depth.png"])
def test_a_bad_file_is_one_line_through_a_worker_too(training_set: TrainingSet, name: str, workers: int) -> None:
    path = training_set.dataset.rows[4].path_rgb.with_name(name)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError) as caught:
        list(loader(training_set, workers))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not active_children()  # its workers have ended


def test_python_ends_although_an_epoch_was_broken_off(tmp_path: Path) -> None:
    """Its workers heed no SIGTERM, which is what Python sends to such processes before it waits for them."""
    write_folder(tmp_path / "data", [{"size": (32, 32)}] * 12)
    program = """if True:
        import sys
        from langdepth.data.base import open_dataset
        from langdepth.training.loaders import TrainingSet
        from langdepth.data.transforms import Augmentation, TrainTransform
        from tests.training.test_loader import loader

        batches = iter(loader(TrainingSet(open_dataset("folder", sys.argv[1]), TrainTransform(Augmentation(), 64)), 1))
        next(batches)
    """
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data")], cwd=Path(__file__).parents[2], check=True, timeout=60
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_kept_stay_as_they_are(training_set: TrainingSet, workers: int) -> None:
    """More than there are places for: the rest goes into new memory."""
    kept = [*loader(training_set, workers, batch_size=1), *loader(training_set, workers, batch_size=1)]
    planned = loader(training_set, batch_size=1).plan.draws.epoch(0)
    expected = [collate([training_set[draw] for draw in draws]) for draws in planned]
    assert len(kept) == 24
    assert all(same(one, other) for one, other in zip(kept, expected * 2, strict=True))


def test_memory_is_used_again_once_nothing_uses_it(training_set: TrainingSet) -> None:
    batches, places, kept = loader(training_set, 1, batch_size=1), [], []
    for i, batch in enumerate(batches):
        places.append(batch.image.data_ptr())
        if i == 0:
            kept.append((batch.depth[0], batch.depth[0].clone()))  # part of a batch keeps the whole
    assert len(set(places)) < len(places) == 12
    assert places.count(places[0]) == 1
    assert torch.equal(*kept[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trainer_that_holds_three_batches_gets_no_new_memory(
    training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The one at work, the one before (its losses are still logged) and the one that is moved to the device."""
    take, places = _Places.take, []

    def taken(self: _Places) -> int | None:
        places.append(take(self))
        return places[-1]

    monkeypatch.setattr(_Places, "take", taken)
    held: deque[Batch] = deque(maxlen=2)  # and the one in the loop's hand
    for batch in loader(training_set, workers, batch_size=1):
        held.append(batch)
    assert len(places) == 12
    assert None not in places
    assert max(place or 0 for place in places) < workers * 2 + 3  # and it is not simply one for every batch


def test_too_little_shared_memory_is_one_line(training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory\nC++ stack")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        LangdepthError, match=r"^cannot reserve \d+ MiB of shared memory .* \(unable to allocate shared memory\); give"
    ):
        next(iter(loader(training_set, 1)))
