"""Metrics that ask the model: closed forms on a model that reads one patch, and the reference package."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hf_cam
from hf_cam import GradCAM
from hf_cam.errors import ModelError, OptionError
from hf_cam.metrics import (
    BASELINES,
    Scorer,
    Trial,
    completeness_error,
    confidence,
    correlation,
    get_metric,
    grid_mosaics,
    grid_pointing_game,
    impute,
    list_metrics,
    rank_correlation,
    ranks,
    shuffled_weights,
)
from hf_cam.metrics.measurements import blur
from hf_cam.metrics.registry import METRICS, Metric, metric, register
from hf_cam.targets import BinaryLogit, ClassLogit, PromptSimilarity
from hf_cam.testing import check_model_untouched
from hf_cam.testing.metrics import PatchReader
from nets import READ
from unchanged import unchanged

SIZE = tuple(READ.shape)


def bright() -> torch.Tensor:
    """A dark image whose patch alone is bright, twice."""
    pixels = torch.full((2, 3, *SIZE), 0.05)
    pixels[..., READ] = 1.0
    return pixels


def trial(maps: torch.Tensor, **settings) -> Trial:
    scorer = Scorer(PatchReader(), {"pixel_values": bright()}, [confidence(ClassLogit(1))] * 2)
    return Trial(maps, scorer, masks=READ.expand(2, *SIZE), **settings)


class Disturbed(PatchReader):
    """The same, less how bright the last columns are: a map that leaves them out raises the confidence."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values) - self.scale * pixel_values[..., 28:].mean((1, 2, 3))[:, None]


def map_of(quality: str) -> torch.Tensor:
    """The perfect map of the patch (a little noise orders the other pixels), its inverse, and noise."""
    perfect = 0.9 * READ.float() + 0.1 * torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
    found = {"best": perfect, "worst": 1 - perfect, "between": BASELINES["noise"](bright())[0]}[quality]
    return found.expand(2, *SIZE)


def measured(name: str, quality: str) -> dict[str, torch.Tensor]:
    """What a metric judges: maps of this quality, and of the sanity checks a method that reads the model this well."""
    maps = map_of(quality)
    unlike = {"best": 1 - maps, "between": torch.rand(2, *SIZE), "worst": maps}[quality]
    given = {
        "attributions": maps,
        "difference": READ.float().sum().expand(2),
        "randomized_maps": unlike,
        "other_maps": unlike,
    }
    pixels = bright()
    model = PatchReader()
    if name == "confidence-increase":  # else no part of the picture speaks against it
        model, pixels[..., 28:] = Disturbed(), 0.5
    scorer = Scorer(model, {"pixel_values": pixels}, [confidence(ClassLogit(1))] * 2)

    def explain(images: torch.Tensor) -> torch.Tensor:
        seen = images.mean(1) * READ
        return seen / seen.amax((1, 2), keepdim=True)

    own = Trial(maps, scorer, masks=READ.expand(2, *SIZE), explain=explain)
    return {need: given[need] if need in given else own.value(need) for need in get_metric(name).needs}


ORDERED = [name for name in list_metrics() if get_metric(name).higher_is_better is not None]


@pytest.mark.parametrize("name", ORDERED)
def test_the_perfect_map_scores_best_its_inverse_worst_and_noise_between(name: str) -> None:
    record = get_metric(name)
    best, between, worst = (
        record.compute(**measured(name, quality)).mean().item() for quality in ("best", "between", "worst")
    )
    sign = 1 if record.higher_is_better else -1
    assert sign * best > sign * worst, (best, between, worst)
    if name in ("confidence-increase", "pointing-game"):  # 0 or 1
        assert sign * best >= sign * between >= sign * worst
    else:
        assert sign * best > sign * between > sign * worst, (best, between, worst)
    low, high = record.range
    assert all(low - 1e-6 <= score <= high + 1e-6 for score in (best, worst, between))


def test_the_registry_refuses_strangers_of_a_taken_id_bad_names_and_unknown_measurements() -> None:
    with pytest.raises(OptionError, match=r"already registered, from hf_cam\.metrics\.perturbation\.road_combined"):
        register(Metric("road", "x", correlation_of_maps, (0, 1), True, "x"))
    with pytest.raises(OptionError, match="not a valid metric id"):
        register(Metric("Road!", "x", correlation_of_maps, (0, 1), True, "x"))
    with pytest.raises(OptionError, match=r"'new' needs 'score'.*nearest: 'scores'"):
        register(Metric("new", "x", lambda score: score, (0, 1), True, "x"))
    with pytest.raises(OptionError, match="nearest: 'insertion'"):
        get_metric("insertions")


def correlation_of_maps(maps: torch.Tensor, kept_maps: torch.Tensor) -> torch.Tensor:
    return correlation(maps, kept_maps)


def test_a_users_metric_is_measured_by_what_its_parameters_name(monkeypatch) -> None:
    monkeypatch.setattr(METRICS, "_records", dict(METRICS._records))

    @metric("relief", "relief", paper="none")
    def relief(scores: torch.Tensor, kept_scores: torch.Tensor) -> torch.Tensor:
        """The confidence that is left."""
        return kept_scores / scores

    found = trial(torch.ones(2, *SIZE)).measure("relief")
    torch.testing.assert_close(found["relief"], torch.ones(2))
    assert hf_cam.metric is metric
    assert list_metrics()[-1] == "relief"


def test_what_is_made_together_is_made_once(monkeypatch) -> None:
    sweeps = []
    inner = Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda self, variants: (sweeps.append(1), inner(self, variants))[1])
    own = trial(torch.rand(2, *SIZE))
    own.measure("insertion", "deletion", "insertion-deletion")
    assert len(sweeps) == 1
    assert set(own.curves()) == {"inserted", "deleted"}


def test_what_a_metric_needs_and_did_not_get_is_named() -> None:
    maps = torch.rand(2, *SIZE)
    with pytest.raises(OptionError, match="pass scorer="):
        Trial(maps).measure("road")
    with pytest.raises(OptionError, match="pass masks="):
        Trial(maps).measure("iou")
    with pytest.raises(OptionError, match="pass explain="):
        trial(maps).measure("arcc")
    with pytest.raises(OptionError, match="come from the method"):
        trial(maps).measure("completeness-error")


def test_the_model_comes_back_and_a_seed_gives_the_same_scores() -> None:
    maps = torch.rand(2, *SIZE)
    model = PatchReader().train()
    names = ["road", "insertion-deletion", "saco"]
    with unchanged(model):
        found = [
            Trial(maps, Scorer(model, {"pixel_values": bright()}, [ClassLogit(1)] * 2), seed=seed).measure(*names)
            for seed in (0, 0, 1)
        ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in names)
    assert not torch.equal(found[0]["road"], found[2]["road"])


def test_a_small_batch_size_gives_the_same_scores() -> None:
    maps = torch.rand(2, *SIZE)
    scorers = [
        Scorer(PatchReader(), {"pixel_values": bright()}, [ClassLogit(1), ClassLogit(0)], size) for size in (1, 7, 64)
    ]
    found = [Trial(maps, scorer).measure("road", "deletion") for scorer in scorers]
    for name in ("road", "deletion"):
        torch.testing.assert_close(found[0][name], found[2][name])
        torch.testing.assert_close(found[1][name], found[2][name])


# Against the reference package ---------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((3, 4)), nn.Flatten(), nn.Linear(96, 5)).eval()
    net[-1].weight.data *= 20  # else no change of the picture changes the softmax by more than the tolerance
    return net


def photographs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 6, 8, generator=generator)
    return nn.functional.interpolate(coarse, SIZE, mode="bicubic") + 0.1 * torch.rand(2, 3, *SIZE, generator=generator)


def smooth_maps() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    maps = nn.functional.interpolate(torch.rand(2, 1, 4, 5, generator=generator), SIZE, mode="bicubic")[:, 0]
    return (maps - maps.amin()) / (maps.amax() - maps.amin())


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the reference's own
def test_confidence_road_and_arcc_are_those_of_grad_cam(monkeypatch) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.metrics import arcc, cam_mult_image, road
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    from hf_cam import CAM

    net, pixels, maps = network(), photographs(), smooth_maps()
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0.0, road.neighbors_weights))
    theirs_of = [ClassifierOutputSoftmaxTarget(1), ClassifierOutputSoftmaxTarget(3)]
    targets = [confidence(ClassLogit(1)), confidence(ClassLogit(3))]

    def explain(images: torch.Tensor) -> torch.Tensor:
        return CAM(net, "gradcam", layers="3", reshape=lambda a: a)(images, targets)

    ours = Trial(maps, Scorer(net, {"pixel_values": pixels}, targets), explain=explain, noise=0.0).measure(
        "confidence-change", "confidence-drop", "confidence-increase", "road", "road-most", "road-least", "arcc"
    )
    percentiles = [20, 40, 60, 80]
    with GradCAM(net, [net[3]]) as base:
        theirs = {
            "confidence-change": cam_mult_image.CamMultImageConfidenceChange(),
            "confidence-drop": cam_mult_image.DropInConfidence(),
            "confidence-increase": cam_mult_image.IncreaseInConfidence(),
            "road": road.ROADCombined(percentiles),
            "road-most": road.ROADMostRelevantFirstAverage(percentiles),
            "road-least": road.ROADLeastRelevantFirstAverage(percentiles),
            "arcc": arcc.ARCC(base, percentiles),
        }
        for name, judge in theirs.items():
            expected = judge(pixels, maps.numpy(), theirs_of, net)
            np.testing.assert_allclose(ours[name].numpy(), expected, atol=1e-3, err_msg=name)
    assert ours["road"].abs().max() > 5e-3  # else the comparison says nothing


def masks_of_every_shape(size: tuple[int, int]) -> torch.Tensor:
    """Scattered pixels, a block, a side down to the border, all but one pixel, nothing."""
    missing = torch.rand(5, *size, generator=torch.Generator().manual_seed(1)) > 0.5
    missing[1, 2 : size[0] - 2, 3 : size[1] - 6] = True
    missing[2, :, : size[1] * 2 // 3] = True
    missing[3] = True
    missing[3, 4, 5] = missing[4] = False
    return missing


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the reference's own
def test_imputation_is_that_of_grad_cam() -> None:
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    pixels = torch.rand(5, 2, 37, 46, generator=torch.Generator().manual_seed(0))
    missing = masks_of_every_shape((37, 46))
    expected = torch.stack(
        [NoisyLinearImputer(noise=0.0)(*pair) for pair in zip(pixels, (~missing).float(), strict=True)]
    )
    torch.testing.assert_close(impute(pixels, missing, noise=0.0), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 90), (9, 7), (64, 65), (150, 203)])
def test_a_missing_pixel_is_the_weighted_mean_of_its_neighbours(size: tuple[int, int]) -> None:
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    missing = torch.rand(1, *size, generator=torch.Generator().manual_seed(1)) > 0.2
    missing[:, :, size[1] // 3 : size[1] // 2] = True
    filled = impute(pixels, missing, noise=0.0).double()
    weights = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]).double().expand(3, 1, 3, 3)
    sums = nn.functional.conv2d(filled, weights, padding=1, groups=3)
    total = nn.functional.conv2d(torch.ones_like(filled), weights, padding=1, groups=3)
    torch.testing.assert_close(filled, torch.where(missing[:, None], sums / total, pixels.double()), atol=1e-4, rtol=0)


def test_images_are_imputed_together_as_they_are_alone(monkeypatch) -> None:
    pixels = torch.rand(5, 2, 37, 46, generator=torch.Generator().manual_seed(0))
    missing = masks_of_every_shape((37, 46))
    together = impute(pixels, missing, noise=0.0)
    monkeypatch.setattr("hf_cam.metrics.imputation.CPU_VALUES", 1)
    torch.testing.assert_close(impute(pixels, missing, noise=0.0), together, atol=1e-4, rtol=0)


def test_imputation_keeps_known_pixels_adds_seeded_noise_and_survives_a_mask_of_everything() -> None:
    pixels = torch.rand(1, 3, 9, 11)
    missing = torch.zeros(1, 9, 11, dtype=torch.bool)
    assert torch.equal(impute(pixels, missing), pixels)
    missing[0, 2:5] = True
    first, again, other = (impute(pixels, missing, noise=0.5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[..., 5:, :], pixels[..., 5:, :])
    everything = impute(pixels, torch.ones_like(missing), noise=0.0)
    torch.testing.assert_close(everything, pixels.mean((2, 3), keepdim=True).expand_as(pixels))


# Closed forms --------------------------------------------------------------------------------------------------------


def test_a_linear_model_has_known_insertion_and_deletion_curves() -> None:
    class Sum(nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return pixel_values.mean((1, 2, 3))[:, None]

    maps = torch.rand(1, *SIZE)
    ones = Scorer(Sum(), {"pixel_values": torch.ones(1, 1, *SIZE)}, [lambda output: output[0]])
    found = Trial(maps, ones, steps=8)
    torch.testing.assert_close(found.value("deleted")[0], torch.linspace(1, 0, 9))
    torch.testing.assert_close(found.value("inserted")[0], torch.ones(9))  # an even image is its own blur
    scores = found.measure("deletion", "perturbation-positive", "perturbation-negative", "insertion")
    assert scores["deletion"] == pytest.approx(0.5)
    assert scores["perturbation-positive"] == pytest.approx(0.5, abs=1e-3)
    assert scores["perturbation-negative"] == pytest.approx(0.5, abs=1e-3)
    assert scores["insertion"] == pytest.approx(1.0)


class Brightest(nn.Module):
    """The pixel at row 10, column 20."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values[:, 0, 10, 20, None]


def test_perturbation_has_nine_points_from_one_to_nine_tenths_in_both_orders_whatever_the_steps() -> None:
    maps = torch.zeros(1, *SIZE)
    maps[0, 10, 20] = 1
    scorer = Scorer(Brightest(), {"pixel_values": torch.ones(1, 1, *SIZE)}, [lambda output: output[0]])
    for steps in (4, 10):
        found = Trial(maps, scorer, steps=steps)
        assert found.value("tenths_first").tolist() == [[0.0] * 9]
        assert found.value("tenths_last").tolist() == [[1.0] * 9]
    whole = Trial(maps, scorer, steps=4).value("deleted")
    assert whole.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


def test_rise_takes_one_step_per_row_of_pixels() -> None:
    maps = torch.arange(SIZE[0] * SIZE[1]).reshape(1, *SIZE).flip(1, 2) / (SIZE[0] * SIZE[1])
    seen: list[torch.Tensor] = []

    class Seen(nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            seen.append(pixel_values[:, 0])
            return pixel_values.mean((1, 2, 3))[:, None]

    scorer = Scorer(Seen(), {"pixel_values": torch.ones(1, 1, *SIZE)}, [lambda output: output[0]])
    found = Trial(maps, scorer, steps="rise")
    assert found.step_count == SIZE[0]
    assert found.value("deleted").shape == (1, SIZE[0] + 1)
    blanked = [(one == 0).sum() for one in torch.cat(seen)]
    assert sorted({int(count) for count in blanked}) == [row * SIZE[1] for row in range(SIZE[0] + 1)]


def test_curves_are_the_same_whether_or_not_all_variants_fit_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 7, stride=3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    maps, pixels = torch.rand(2, *SIZE), torch.rand(2, 1, *SIZE)
    scorer = Scorer(net, {"pixel_values": pixels}, [lambda output: output[1]] * 2)
    together = Trial(maps, scorer, steps=9)
    monkeypatch.setattr("hf_cam.metrics.measurements.AT_ONCE", 3)
    apart = Trial(maps, scorer, steps=9)
    for name in ("inserted", "deleted", "tenths_first", "tenths_last"):
        torch.testing.assert_close(apart.value(name), together.value(name))


@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, True, "row", None])
def test_what_is_no_number_of_steps_is_refused(steps: Any) -> None:
    scorer = Scorer(Brightest(), {"pixel_values": torch.ones(1, 1, *SIZE)}, [lambda output: output[0]])
    with pytest.raises(OptionError, match='steps must be a whole number from 2 on, or "rise"'):
        Trial(torch.rand(1, *SIZE), scorer, steps=steps).value("deleted")


def test_more_steps_than_pixels_are_refused() -> None:
    scorer = Scorer(Brightest(), {"pixel_values": torch.ones(1, 1, *SIZE)}, [lambda output: output[0]])
    with pytest.raises(OptionError, match="steps=100000 is more than the"):
        Trial(torch.rand(1, *SIZE), scorer, steps=100000).value("inserted")


def test_saco_is_one_where_relevance_orders_the_drops_and_minus_one_where_it_reverses_them() -> None:
    record = get_metric("saco").compute
    scores, relevance = torch.tensor([1.0]), torch.tensor([[4.0, 3.0, 1.0]])
    assert record(scores, relevance, torch.tensor([[0.1, 0.4, 0.9]])) == 1
    assert record(scores, relevance, torch.tensor([[0.9, 0.4, 0.1]])) == -1
    assert record(scores, relevance, torch.tensor([[0.4, 0.1, 0.9]])) == pytest.approx((-1 + 3 + 2) / 6)
    assert record(scores, torch.ones(1, 3), torch.tensor([[0.4, 0.1, 0.9]])) == 0


def test_ranks_order_equal_values_at_random_but_by_seed() -> None:
    even = torch.zeros(2, 5, 7)
    assert torch.equal(ranks(even), ranks(even))
    assert not torch.equal(ranks(even), ranks(even, seed=1))
    assert sorted(ranks(even)[1].flatten().tolist()) == list(range(35))
    maps = torch.rand(5, 7)
    assert maps.flatten()[ranks(maps).flatten().argsort()].diff().max() <= 0


def test_rank_correlation_is_that_of_scipy() -> None:
    from scipy.stats import pearsonr, spearmanr

    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 6, 9, generator=generator).mul(6).round()
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic, abs=1e-6)
    assert correlation(a, b) == pytest.approx(pearsonr(a.flatten(), b.flatten()).statistic, abs=1e-6)
    assert correlation(torch.ones(3, 3), a[:3, :3]) == 0


def test_the_grid_pointing_game_has_chance_one_quarter() -> None:
    tiles = torch.rand(4, 3, 6, 8)
    mosaic = grid_mosaics(tiles, [[2, 0, 3, 1]])
    assert torch.equal(mosaic[0, :, :6, 8:], tiles[0])
    assert torch.equal(mosaic[0, :, 6:, :8], tiles[3])
    maps = torch.ones(2, 12, 16)
    torch.testing.assert_close(grid_pointing_game(maps, torch.tensor([0, 3])), torch.tensor([0.25, 0.25]))
    maps[1, 6:, :8] = 0
    assert grid_pointing_game(maps, torch.tensor([0, 2]))[1] == 0
    with pytest.raises(OptionError, match="four images"):
        grid_mosaics(tiles, [[0, 1]])


def test_entropy_is_that_of_scipy_and_zero_where_nothing_is_shown() -> None:
    from scipy.stats import entropy

    record = get_metric("entropy").compute
    maps = torch.rand(2, *SIZE)
    np.testing.assert_allclose(record(maps), entropy(maps.flatten(1).numpy(), axis=1), rtol=1e-5)
    assert record(torch.ones(1, *SIZE)) == pytest.approx(np.log(SIZE[0] * SIZE[1]))
    assert record(torch.zeros(1, *SIZE)) == 0


def test_completeness_error_is_the_missing_share() -> None:
    attributions = torch.tensor([[[1.0, -2.0], [4.0, 0.0]]])
    assert completeness_error(attributions, torch.tensor([3.0])) == 0
    assert completeness_error(attributions, torch.tensor([-6.0])) == pytest.approx(1.5)


def test_max_sensitivity_is_the_largest_relative_change() -> None:
    maps = torch.zeros(1, 3, 4)
    maps[0, 0, 0] = 2
    moved = torch.stack([maps, maps * 1.5, maps * 0.75])
    assert get_metric("max-sensitivity").compute(maps, moved) == pytest.approx(0.5)
    found = trial(torch.rand(2, *SIZE), explain=lambda pixels: pixels.mean(1)).measure("max-sensitivity")
    assert (found["max-sensitivity"] > 0).all()


def test_shuffled_weights_are_those_of_a_copy_and_of_hf_cams_maps_alone() -> None:
    net, pixels = network(), torch.rand(1, 3, *SIZE)
    own = GradCAM(net)(pixels, 1)

    def shuffled() -> tuple[torch.Tensor, torch.Tensor]:
        with shuffled_weights(net) as copy:
            assert not torch.equal(copy[0].weight, net[0].weight)
            torch.testing.assert_close(copy[0].weight.flatten().sort()[0], net[0].weight.flatten().sort()[0])
            return GradCAM(copy)(pixels, 1), GradCAM(net)(pixels, 1)

    of_copy, of_model = check_model_untouched(net, shuffled)
    assert torch.equal(of_copy, of_model)
    assert not torch.allclose(of_copy, own)
    assert torch.equal(GradCAM(net)(pixels, 1), own)


def test_other_threads_never_see_shuffled_weights() -> None:
    net, pixels = network(), torch.rand(1, 3, *SIZE)
    expected, found = net(pixels), []
    with shuffled_weights(net), ThreadPoolExecutor(1) as thread:
        found += thread.submit(lambda: (net(pixels), GradCAM(net)(pixels, 1))).result()
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], GradCAM(net)(pixels, 1))


def test_weights_that_cannot_be_shuffled_and_maps_of_other_libraries_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'0\.weight' are not in memory"), shuffled_weights(network().to("meta")):
        pass
    with pytest.raises(OptionError, match="explain= does not use hf-cam"):
        trial(torch.rand(2, *SIZE), explain=lambda pixels: pixels.mean(1)).measure("model-randomization")


def test_confidence_is_a_probability_for_classes_and_the_target_itself_for_others() -> None:
    logits = torch.tensor([1.0, 3.0])
    assert confidence(ClassLogit(1))(logits) == pytest.approx(logits.softmax(0)[1].item())
    multi = confidence(ClassLogit(1), "multi_label_classification")
    assert multi(logits) == pytest.approx(logits.sigmoid()[1].item())
    assert confidence(ClassLogit(0))(logits[:1]) == pytest.approx(logits[:1].sigmoid().item())
    assert confidence(BinaryLogit(positive=False))(logits[:1]) == pytest.approx(torch.tensor(-1.0).sigmoid().item())
    own = logits.norm
    assert confidence(own) is own
    prompt, output = PromptSimilarity(1), {"logits_per_image": logits}
    assert confidence(prompt) is prompt
    assert confidence(prompt, prompts=2)(output) == pytest.approx(logits.softmax(0)[1].item())


def test_baselines_see_the_picture_alone() -> None:
    pixels = torch.zeros(2, 3, 9, 13)
    pixels[..., 6:] = 1.0
    for make in BASELINES.values():
        maps = make(pixels)
        assert maps.shape == (2, 9, 13)
        assert 0 <= maps.min() <= maps.max() <= 1
    edges = BASELINES["sobel"](pixels)[0]
    assert set(edges.nonzero()[:, 1].tolist()) == {5, 6}
    middle = BASELINES["centred-gaussian"](pixels)[0]
    assert middle.argmax() == 4 * 13 + 6
    assert not torch.equal(*BASELINES["noise"](pixels))


def test_a_blur_keeps_the_mean_and_takes_the_detail() -> None:
    pixels = torch.rand(1, 3, 40, 50)
    assert blur(pixels).mean() == pytest.approx(pixels.mean().item(), abs=0.02)
    assert blur(pixels).std() < 0.2 * pixels.std()


def test_max_sensitivity_of_an_image_depends_on_no_other() -> None:
    pixels = torch.cat([bright()[:1], 50 * torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))])
    maps, target = pixels.mean(1), confidence(ClassLogit(1))

    def sensitivity(chosen: list[int]) -> torch.Tensor:
        scorer = Scorer(PatchReader(), {"pixel_values": pixels[chosen]}, [target] * len(chosen))
        own = Trial(maps[chosen], scorer, explain=lambda changed: changed.mean(1))
        return own.measure("max-sensitivity")["max-sensitivity"]

    torch.testing.assert_close(sensitivity([0, 1]), torch.cat([sensitivity([0]), sensitivity([1])]))


REFUSED = {
    "NaN in a map": ({"maps": torch.full((2, *SIZE), torch.nan)}, "values that are not finite"),
    "one map for two images": ({"maps": torch.rand(1, *SIZE)}, "one per image of the scorer, got"),
    "maps of another size": ({"maps": torch.rand(2, 5, 7)}, "one per image of the scorer, got"),
    "maps as an array": ({"maps": torch.rand(2, *SIZE).numpy()}, r"got ndarray; use torch\.as_tensor"),
    "maps of booleans": ({"maps": torch.ones(2, *SIZE, dtype=torch.bool)}, r"got torch\.bool of shape"),
    "a map without a batch": ({"maps": torch.rand(*SIZE)}, "floating tensor .B, H, W., got"),
    "masks of numbers": ({"masks": torch.ones(2, *SIZE)}, r"a boolean tensor .* got torch\.float32"),
    "masks of another size": ({"masks": torch.ones(2, 5, 7, dtype=torch.bool)}, "a boolean tensor .* like the maps"),
    "masks as an array": ({"masks": torch.ones(2, *SIZE, dtype=torch.bool).numpy()}, "got ndarray"),
    "no percentile": ({"percentiles": ()}, "percentiles must be some numbers from 0 to 100"),
    "a percentile above 100": ({"percentiles": (20, 101)}, "percentiles must be some numbers from 0 to 100"),
    "a percentile below 0": ({"percentiles": (-1,)}, "percentiles must be some numbers from 0 to 100"),
    "percentiles of None": ({"percentiles": None}, "percentiles must be some numbers from 0 to 100"),
    "a percentile as text": ({"percentiles": "20"}, "percentiles must be some numbers from 0 to 100"),
    "noise below 0": ({"noise": -0.1}, "noise must be a number from 0, got -0.1"),
    "a radius below 0": ({"radius": -0.1}, "radius must be a number from 0, got -0.1"),
    "a radius that is none": ({"radius": float("nan")}, "radius must be a number from 0"),
    "no groups": ({"groups": 0}, "groups must be a whole number from 1, got 0"),
    "no samples": ({"samples": 0}, "samples must be a whole number from 1, got 0"),
    "a seed below 0": ({"seed": -1}, "seed must be a whole number from 0"),
}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_a_trial_refuses_what_cannot_be_measured(settings: dict, words: str) -> None:
    scorer = Scorer(PatchReader(), {"pixel_values": bright()}, [confidence(ClassLogit(1))] * 2)
    with pytest.raises(OptionError, match=words):
        Trial(**{"maps": torch.rand(2, *SIZE), "scorer": scorer, **settings})
