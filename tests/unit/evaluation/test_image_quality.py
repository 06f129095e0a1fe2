"""Frechet distance, PSNR and SSIM against closed forms and an independent implementation."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from gear_dist.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from gear_dist.evaluation.image_quality import psnr, ssim
from refusals import refused


def gaussian(mean: list[float], variances: list[float]) -> Gaussian:
    return Gaussian(
        torch.tensor(mean, dtype=torch.float64),
        torch.diag(torch.tensor(variances, dtype=torch.float64)),
    )


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form():
    a = gaussian([0.0, 1.0, -2.0], [1.0, 4.0, 0.0])
    b = gaussian([3.0, 1.0, -1.0], [9.0, 0.25, 2.0])
    # |m|^2 + sum of (sqrt(u) - sqrt(v))^2 over the axes
    expected = (9 + 0 + 1) + ((1 - 3) ** 2 + (2 - 0.5) ** 2 + (0 - 2**0.5) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_does_not_depend_on_the_basis():
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    a = gaussian([1.0, 0.0, 2.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.1, 0.5])
    b = gaussian([0.0] * 5, [2.0, 2.0, 0.3, 1.0, 4.0])
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_frechet_distance_matches_the_matrix_square_root():
    from scipy.linalg import sqrtm

    random = torch.Generator().manual_seed(0)
    factors = torch.randn(2, 6, 6, dtype=torch.float64, generator=random)
    means = torch.randn(2, 6, dtype=torch.float64, generator=random)
    a, b = (Gaussian(m, f @ f.T) for m, f in zip(means, factors, strict=True))
    root = sqrtm((a.covariance @ b.covariance).numpy()).real
    gap = float((a.mean - b.mean).square().sum())
    expected = gap + float((a.covariance + b.covariance).trace()) - 2 * float(np.trace(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_a_set_to_itself_is_zero_even_when_singular():
    features = torch.randn(4, 16)  # fewer samples than features
    fit = fit_gaussian(features)
    assert frechet_distance(fit, fit) == pytest.approx(0, abs=1e-6)


def test_gaussian_fit_is_mean_and_unbiased_covariance():
    features = torch.randn(50, 3)
    fit = fit_gaussian(features)
    np.testing.assert_allclose(fit.mean, features.double().mean(0))
    np.testing.assert_allclose(fit.covariance, np.cov(features.double().numpy().T))
    with refused(ValueError, "N >= 2", "(1, 3)"):
        fit_gaussian(features[:1])
    with refused(ValueError, "finite"):
        fit_gaussian(torch.full((3, 2), torch.nan))


def test_psnr_of_a_known_error():
    images = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    others = images.clone()
    others[0] += 51  # 0.2 of the range: 20 log10(5) dB
    others[1, :, :8] += 51  # half of the pixels: 10 log10(2) more
    values = psnr(images, others)
    assert values[0].item() == pytest.approx(20 * np.log10(5))
    assert values[1].item() == pytest.approx(20 * np.log10(5) + 10 * np.log10(2))
    assert psnr(images, images).tolist() == [100, 100]


def test_ssim_matches_scikit_image():
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (2, 3, 32, 24), dtype=np.uint8)
    b = np.clip(a + random.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    ours = ssim(torch.from_numpy(a), torch.from_numpy(b))
    for index in range(2):
        theirs = structural_similarity(
            a[index] / 255,
            b[index] / 255,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ours[index].item() == pytest.approx(theirs, abs=1e-6)
    assert ssim(torch.from_numpy(a), torch.from_numpy(a)).tolist() == pytest.approx([1, 1])


def test_metrics_refuse_floats_small_images_and_other_shapes():
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with refused(ValueError, "uint8", "(1, 3, 16, 16) torch.float32"):
        psnr(images.float(), images)
    with refused(ValueError, "shape", "(1, 3, 8, 16) torch.uint8"):
        psnr(images, images[:, :, :8])
    with refused(ValueError, "11 pixels", "(1, 3, 8, 16)"):
        ssim(images[:, :, :8], images[:, :, :8])
