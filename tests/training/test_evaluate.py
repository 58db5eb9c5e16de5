import pytest
import torch
from torch import nn

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.report.metrics import measure
from factor_transfer.training.evaluate import predict, top

CLASSES = ("a", "b", "c", "d", "e", "f", "g")
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(0, 7, (200,), generator=GENERATOR)
LOGITS = torch.randn(200, 7, generator=GENERATOR) + 2 * torch.nn.functional.one_hot(LABELS, 7)
ALL = ["accuracy", "precision", "recall", "f1", "calibration"]


def test_top1_and_top5_are_counted() -> None:
    figures = top(LOGITS, LABELS)
    order = LOGITS.argsort(1, descending=True).tolist()
    for name, k in (("top1", 1), ("top5", 5)):
        hits = sum(label in row[:k] for row, label in zip(order, LABELS.tolist(), strict=True))
        assert figures[name] == pytest.approx(100 * hits / 200)
    assert 0 < figures["top1"] < figures["top5"] < 100


def test_with_fewer_than_five_classes_all_are_among_the_likeliest() -> None:
    assert top(torch.randn(9, 3), torch.arange(9) % 3)["top5"] == 100


def test_precision_recall_and_f1_of_each_class_and_their_mean() -> None:
    result = measure(LOGITS, LABELS, CLASSES, ALL)
    predicted = LOGITS.argmax(1)
    sums = dict.fromkeys(("precision", "recall", "f1"), 0.0)
    for index, name in enumerate(CLASSES):
        true = (predicted.eq(index) & LABELS.eq(index)).sum().item()
        precision = 100 * true / predicted.eq(index).sum().item()
        recall = 100 * true / LABELS.eq(index).sum().item()
        expected = {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall)}
        found = result["classes"][name]
        assert found["count"] == LABELS.eq(index).sum()
        assert found["accuracy"] == pytest.approx(recall, abs=1e-3)
        for metric, value in expected.items():
            assert found[metric] == pytest.approx(value, abs=1e-3)
            sums[metric] += value / 7
    for metric, value in sums.items():
        assert result[metric] == pytest.approx(value, abs=1e-3)
    assert result["accuracy"] == result["top1"]
    assert result["count"] == 200


def test_calibration_is_the_gap_of_confidence_and_accuracy_in_15_bins() -> None:
    confidence, predicted = LOGITS.softmax(1).max(1)
    expected = 0.0
    for bin_index in range(15):
        inside = (confidence > bin_index / 15) & (confidence <= (bin_index + 1) / 15)
        if inside.any():
            gap = confidence[inside].mean() - (predicted == LABELS)[inside].float().mean()
            expected += gap.abs().item() * inside.sum().item() / 200
    result = measure(LOGITS, LABELS, CLASSES, ["calibration"])
    assert result["calibration"] == pytest.approx(100 * expected, abs=1e-3)
    sure = measure(100.0 * torch.nn.functional.one_hot(LABELS, 7), LABELS, CLASSES, ["calibration"])
    assert sure["calibration"] == pytest.approx(0, abs=1e-3)
    assert all(figures["calibration"] == pytest.approx(0, abs=1e-3) for figures in sure["classes"].values())


def test_a_class_without_images_has_no_figures() -> None:
    kept = LABELS != 3
    result = measure(LOGITS[kept], LABELS[kept], CLASSES, ALL)
    assert result["classes"]["d"] == {"count": 0, **dict.fromkeys(["top1", "top5", *ALL])}
    assert result["classes"]["e"]["top1"] == result["classes"]["e"]["recall"]


def test_an_unknown_metric_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown metric 'recal'; did you mean 'recall'"):
        measure(LOGITS, LABELS, CLASSES, ["recal"])


def test_prediction_uses_evaluation_mode_and_restores_each_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[0].eval()
    images = torch.randn(10, 4)
    logits, labels = predict(model, map(Batch, images.split(4), torch.arange(10).split(4)))
    assert (logits.shape, labels.tolist()) == ((10, 3), list(range(10)))
    assert not logits.requires_grad
    assert [module.training for module in model] == [False, True, True]
    model.eval()
    assert torch.allclose(logits, model(images))
