import torch

from ddpm_lightning.images import from_uint8, to_uint8


def test_all_256_values_survive_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(values)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), values)


def test_values_round_and_out_of_range_clamps_instead_of_wrapping():
    x = torch.tensor([-1.5, -1.02, -1.0, -0.9961, 0.0, 0.0039, 0.999, 1.0, 1.02, 9.0])
    expected = [0, 0, 0, 0, 128, 128, 255, 255, 255, 255]
    assert to_uint8(x).tolist() == expected
