"""Similarities of neighbourhoods against a slow loop, their gradients, and what they forgive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medfields.losses.local import _open, lines, local_ncc, mind_ssc, standard


def textured(shape: tuple[int, ...] = (14, 13, 12), seed: int = 0) -> Tensor:
    return torch.nn.functional.avg_pool3d(torch.randn(1, *(n + 2 for n in shape), generator=torch.Generator().manual_seed(seed)), 3, 1)[0]


def close(a: Tensor | float, b: Tensor | float, by: float) -> None:
    a, b = (float(v.detach()) if isinstance(v, Tensor) else v for v in (a, b))
    assert abs(a - b) <= by, (a, b)


def slow(a: Tensor, b: Tensor, radius: int, mask: Tensor | None = None, margin: int = 0, noise: float = 1e-4,
         squared: bool = False) -> float:
    """The mean over windows, one after the other, in double precision."""
    inside = np.ones(a.shape, bool) if mask is None else mask.numpy()
    x, y = ((v - v[inside].mean()) / v[inside].std() for v in (a.double().numpy(), b.double().numpy()))
    found = []
    for at in np.argwhere(inside):
        if (at < margin).any() or (at >= np.array(a.shape) - margin).any():
            continue
        cut = tuple(slice(max(0, p - radius), p + radius + 1) for p in at)
        p, q = x[cut][inside[cut]], y[cut][inside[cut]]
        cov = (p * q).mean() - p.mean() * q.mean()
        r = cov / np.sqrt((p.var() + noise) * (q.var() + noise))
        found.append(r * abs(r) if squared else r)
    return float(np.mean(found))


def ball(shape: tuple[int, ...]) -> Tensor:
    at = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return at.norm(dim=0) < 0.9


@pytest.mark.parametrize(("radius", "masked", "margin"), [(1, True, 2), (2, True, 0), (4, False, 3), (2, True, 4), (20, False, 4)])
def test_local_ncc_is_the_mean_over_windows(radius: int, masked: bool, margin: int) -> None:
    a = textured()
    b = a + 0.5 * textured(seed=1)
    mask = ball(a.shape) if masked else None
    close(local_ncc(a, b, radius, mask, margin), slow(a, b, radius, mask, margin), 2e-5)
    close(local_ncc(a.double(), b.double(), radius, mask, margin), slow(a, b, radius, mask, margin), 1e-10)
    close(local_ncc(a, b, radius, mask, margin), local_ncc(b, a, radius, mask, margin), 1e-6)
    squares = slow(a, -b, radius, mask, margin, 0.01, squared=True)
    assert squares < 0
    close(local_ncc(a.double(), -b.double(), radius, mask, margin, 0.01, squared=True), squares, 1e-10)


def test_local_ncc_ends() -> None:
    a = textured()
    close(local_ncc(a, a), 1, 1e-3)
    close(local_ncc(a, -3 * a + 7), -1, 1e-3)
    close(local_ncc(a, textured(seed=5)), 0, 0.1)
    assert local_ncc(a, a) <= 1 + 1e-6
    close(local_ncc(a[None], a[None]), local_ncc(a, a), 1e-6)  # with a batch


def test_local_ncc_forgives_gain_and_bias() -> None:
    a = textured((20, 20, 20)) + 1
    b = a + 0.3 * textured((20, 20, 20), 1)
    base = local_ncc(a, b, 2)
    close(local_ncc(a, 300 * b - 1024, 2), base, 1e-3)
    close(local_ncc(0.01 * a + 5, b, 2), base, 1e-3)
    x = torch.linspace(0.8, 1.25, 20)
    coil = x[:, None, None] * x[None, :, None] * (1 + 0 * x)
    close(local_ncc(a, coil * b, 2), base, 0.05)
    whole = float(torch.corrcoef(torch.stack([a.flatten(), (coil * b).flatten()]))[0, 1])
    assert whole < float(base) - 0.2  # what one window over everything makes of that


def test_lines_are_those_of_each_window() -> None:
    a, b = (standard(textured(seed=n).double(), torch.ones(14, 13, 12)) for n in (0, 1))
    mask = torch.rand(a.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    slope, offset, variance = lines(a, b, 2, mask, noise=0.0)
    spread = []
    for at in np.argwhere(mask.numpy()):
        cut = tuple(slice(max(0, p - 2), p + 3) for p in at)
        inside = mask.numpy()[cut]
        x, y = b.numpy()[cut][inside], a.numpy()[cut][inside]
        np.testing.assert_allclose((slope[tuple(at)], offset[tuple(at)]), np.polyfit(x, y, 1), rtol=1e-6, atol=1e-8)
        spread.append(y.var())
    close(variance, float(np.mean(spread)), 1e-9)
    flat = lines(a, torch.zeros_like(b), 2, mask)
    assert not flat[0].any()  # no slope, and the offset is the mean of the window
    close(flat[1][7, 7, 7], float(a[5:10, 5:10, 5:10][mask[5:10, 5:10, 5:10]].mean()), 1e-9)


def test_local_ncc_mask_and_margin() -> None:
    """What lies beyond the mask is not seen; what lies in the margin is, from within."""
    a = textured()
    b, mask = a + 0.5 * textured(seed=1), ball(a.shape)
    spoilt = torch.where(mask, b, torch.full_like(b, 40.0))
    close(local_ncc(a, spoilt, 2, mask), local_ncc(a, b, 2, mask), 1e-5)
    leaf = b.clone().requires_grad_()
    local_ncc(a, leaf, 2, mask).backward()
    assert not leaf.grad[~mask].any() and leaf.grad[mask].all()
    leaf = b.clone().requires_grad_()
    local_ncc(a, leaf, 1, None, 3).backward()
    assert not leaf.grad[:2].any() and leaf.grad[2:-2, 2:-2, 2:-2].all() and not leaf.grad[:, :, -2:].any()
    leaf = b.clone().requires_grad_()
    nothing = local_ncc(a, leaf, 1, torch.zeros_like(mask))
    assert nothing == 0 and not torch.autograd.grad(nothing, leaf)[0].any()  # a block without voxels that count


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("masked", "margin"), [(False, 0), (True, 2)])
def test_local_ncc_gradient(masked: bool, margin: int, squared: bool) -> None:
    """The closed form is that of autograd through the definition, in float64 and, less exactly, in float32."""
    a = textured().double()
    b = (a + 0.5 * textured(seed=1)).requires_grad_()
    whole = ball(a.shape).double() if masked else torch.ones_like(a)
    centres = torch.zeros_like(whole)
    inner = (slice(margin, 14 - margin), slice(margin, 13 - margin), slice(margin, 12 - margin))
    centres[inner] = whole[inner]
    slowly = 3 * _open(standard(a, whole), standard(b, whole), 2, whole, centres, 1e-4, squared)
    wanted = torch.autograd.grad(slowly, b)[0]
    mask = whole > 0 if masked else None
    value = 3 * local_ncc(a, b, 2, mask, margin, squared=squared)
    close(value, slowly, 1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, b)[0], wanted, rtol=1e-9, atol=1e-12)
    swapped = torch.autograd.grad(3 * local_ncc(b, a, 2, mask, margin, squared=squared), b)[0]
    torch.testing.assert_close(swapped, wanted, rtol=1e-9, atol=1e-12)
    leaf = b.detach().float().requires_grad_()
    roughly = torch.autograd.grad(3 * local_ncc(a.float(), leaf, 2, mask, margin, squared=squared), leaf)[0]
    torch.testing.assert_close(roughly, wanted.float(), rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    p, q = a.clone().requires_grad_(), b.detach().clone().requires_grad_()
    both = torch.autograd.grad(3 * local_ncc(p, q, 2, mask, margin, squared=squared), (p, q))
    torch.testing.assert_close(both[1], wanted, rtol=1e-9, atol=1e-12)
    assert both[0].any()


@pytest.mark.parametrize("value", [0.0, 0.1, -1024.0, 3e5])
def test_flat_images_say_nothing(value: float) -> None:
    a, flat = textured(), torch.full((14, 13, 12), value).requires_grad_()
    for found in (local_ncc(a, flat, 2), local_ncc(flat, a, 2)):
        close(found, 0, 1e-3)
        assert torch.isfinite(torch.autograd.grad(found, flat)[0]).all()


def test_flat_windows_say_nothing() -> None:
    """Half of the image is air, and one voxel shines a hundred times the standard deviation: no window may be worth more than one."""
    a = textured((24, 24, 24))
    a[:12] = 0
    b = a.clone()
    close(local_ncc(a, b, 2), slow(a, b, 2), 1e-4)
    assert 0.5 < float(local_ncc(a, b, 2)) < 0.7
    hot = 1e-3 * a + 0.1
    hot[4:7, 4:7, 4:7] = 50.0
    leaf = hot.clone().requires_grad_()
    found = local_ncc(hot, leaf, 1)
    assert abs(float(found.detach())) <= 1 and torch.isfinite(torch.autograd.grad(found, leaf)[0]).all()
    flatter = torch.where(hot > 10, hot, hot * 0 + 0.1)
    close(local_ncc(flatter, hot, 1), slow(flatter, hot, 1), 5e-3)


# --- MIND ---

def test_mind_has_twelve_channels_of_at_most_one() -> None:
    image = textured()
    d = mind_ssc(image)
    assert d.shape == (12, 14, 13, 12) and float(d.max()) == 1 and float(d.min()) >= 0 and (d.amax(0) == 1).all()
    assert mind_ssc(torch.stack([image, 2 * image])).shape == (2, 12, 14, 13, 12)
    torch.testing.assert_close(mind_ssc(torch.stack([image, image]))[1], d)
    flat = mind_ssc(torch.full((6, 6, 6), 7.0))
    assert torch.isfinite(flat).all() and (flat == 1).all()


def test_mind_against_its_definition() -> None:
    """At one voxel, in float64, with patches and pairs written out."""
    image = textured().double().numpy()
    at, six = np.array([6, 6, 6]), [s * e for e in np.eye(3, dtype=int) for s in (2, -2)]

    def patch(centre: np.ndarray) -> np.ndarray:
        return image[tuple(slice(c - 1, c + 2) for c in centre)]

    d = [((patch(at + p) - patch(at + q)) ** 2).mean() for n, p in enumerate(six) for q in six[n + 1:] if p @ q == 0]
    d = np.array(d) - min(d)
    torch.testing.assert_close(mind_ssc(torch.tensor(image))[:, 6, 6, 6], torch.tensor(np.exp(-d / d.mean())))


def test_mind_forgives_contrast() -> None:
    image = textured((16, 16, 16))
    d = mind_ssc(image)
    for other in (-image, 100 * image + 1000, 5 - 0.01 * image):
        torch.testing.assert_close(mind_ssc(other), d, rtol=0, atol=5e-3)
    other = float((mind_ssc(textured((16, 16, 16), 1)) - d).abs().mean())
    bent = torch.exp(-0.8 * image / image.std())  # a contrast inversion that is no line
    assert float((mind_ssc(bent) - d).abs().mean()) < 0.6 * other


def test_mind_moves_with_the_image() -> None:
    image = textured((18, 16, 14))
    d, moved = mind_ssc(image), mind_ssc(image.roll((2, 1), (0, 1)))
    inner = (slice(None), slice(6, -4), slice(5, -4), slice(4, -4))
    torch.testing.assert_close(moved[inner], d.roll((2, 1), (1, 2))[inner], rtol=1e-2, atol=1e-4)
    assert float((moved - d)[inner].abs().mean()) > 0.1


def test_mind_can_be_trained_on() -> None:
    image = textured((8, 8, 8)).requires_grad_()
    grad = torch.autograd.grad((mind_ssc(image) - mind_ssc(textured((8, 8, 8), 1))).square().sum(), image)[0]
    assert torch.isfinite(grad).all() and grad.any()
    flat = torch.zeros(6, 6, 6).requires_grad_()
    assert torch.isfinite(torch.autograd.grad(mind_ssc(flat).sum(), flat)[0]).all()
