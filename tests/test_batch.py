"""What is known beside a sample: choosing, repeating, forgetting and stacking rows."""

import torch

from ddpm_lightning.batch import Batch, Condition, DataSpec

FULL = Condition(
    label=torch.tensor([3, 1, 4]),
    image=torch.arange(3.0).view(3, 1, 1, 1) + 1,
    tokens=torch.arange(3.0).view(3, 1, 1).expand(3, 2, 5) + 1,
    mask=torch.tensor([[True, False]] * 3),
    estimate=torch.arange(3.0).view(3, 1, 1, 1) + 5,
)
LABELS = Condition(torch.tensor([3, 1, 4]))


def same(a: Condition, b: Condition) -> bool:
    return all(
        (p is None and q is None) or (p is not None and q is not None and torch.equal(p, q))
        for p, q in zip(a, b, strict=True)
    )


def test_rows_are_chosen_in_every_part_and_missing_parts_stay_missing():
    chosen = FULL.rows(torch.tensor([2, 0]))
    assert [part[:, ...].flatten(1)[:, 0].tolist() for part in chosen[1:3]] == [[3, 1], [3, 1]]
    assert chosen.label.tolist() == [4, 3]
    assert same(FULL.rows(slice(1)), FULL.rows(torch.tensor([True, False, False])))
    assert same(LABELS.rows(slice(2)), Condition(torch.tensor([3, 1])))
    assert Condition().rows(slice(2)) == Condition()


def test_rows_repeat_along_the_index_of_the_samples():
    assert LABELS.repeated(torch.tensor([0, 4, 8, 2])).label.tolist() == [3, 1, 4, 4]
    assert Condition().repeated(torch.arange(9)) == Condition()


def test_null_rows_forget_label_and_tokens_but_neither_image_nor_estimate():
    null = FULL.null(torch.tensor([False, True, False]))
    assert null.label.tolist() == [3, -1, 4]
    assert null.tokens[:, 0, 0].tolist() == [1, 0, 3]
    assert null.mask.tolist() == [[True, False], [False, False], [True, False]]
    assert torch.equal(null.image, FULL.image)
    assert torch.equal(null.estimate, FULL.estimate)
    everywhere = FULL.null(image=True)
    assert everywhere.label.tolist() == [-1, -1, -1]
    assert not everywhere.image.any()
    assert not everywhere.tokens.any()
    assert FULL.label.tolist() == [3, 1, 4]  # as it was
    assert Condition().null() == Condition()


def test_tokens_without_a_mask_get_one_when_some_rows_forget():
    null = FULL._replace(mask=None).null(torch.tensor([True, False, False]))
    assert null.mask.tolist() == [[False, False], [True, True], [True, True]]


def test_stacked_rows_come_apart_again():
    both = FULL.followed_by(FULL.null())
    assert same(both.rows(slice(3)), FULL)
    assert same(both.rows(slice(3, None)), FULL.null())
    assert Condition().followed_by(Condition()) == Condition()


def test_every_part_moves_to_a_device():
    assert {part.device.type for part in FULL.to("meta")} == {"meta"}


def test_a_batch_keeps_its_place_in_the_split_apart_from_the_index_method_of_tuples():
    batch = Batch(torch.zeros(2, 1), Condition(), torch.tensor([5, 6]))
    assert batch.index.tolist() == [5, 6]
    assert batch.row is None


def test_a_specification_states_itself_as_plain_data_and_is_rebuilt_from_it():
    spec = DataSpec([3, 8, 8], data_range=[-1, 1], num_classes=10, image_channels=1)
    assert spec.plain()["shape"] == [3, 8, 8]
    assert DataSpec(**spec.plain()) == spec


def test_a_null_row_of_tokens_is_masked_under_guidance_as_in_training():
    words = Condition(tokens=torch.ones(2, 3, 4))
    both = words.followed_by(words.null())
    assert both.mask.tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
