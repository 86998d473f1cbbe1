"""The pictures: figures that show what they were given, and refusals of what they cannot show."""

from __future__ import annotations

import io

import numpy as np
import pytest

from twolayer import NumpyNet
from twolayer.training.results import History

pytest.importorskip("matplotlib")
from twolayer import plotting


def drawn(figure):
    """The figure, once it has been drawn, which is when layouts fail."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_a_learning_curve_has_a_line_for_each_figure_and_marks_the_best_epoch():
    history = History(loss=[3.0, 2.0, 1.0], val_loss=[3.0, 2.5, 2.6], val_accuracy=[0.5, 0.7, 0.6], best_epoch=1)
    losses, accuracy = drawn(plotting.learning_curve(history)).axes
    curves = {line.get_label(): line for line in losses.lines}
    np.testing.assert_array_equal(curves["training"].get_xydata(), [[1, 3], [2, 2], [3, 1]])
    np.testing.assert_array_equal(curves["validation"].get_ydata(), history.val_loss)
    np.testing.assert_array_equal(curves["best epoch"].get_xdata(), [2, 2])
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), history.val_accuracy)


def test_a_learning_curve_of_little():
    (axes,) = drawn(plotting.learning_curve(History(loss=[3.0]))).axes
    assert [line.get_label() for line in axes.lines] == ["training"]
    with pytest.raises(ValueError, match="history must have at least one epoch"):
        plotting.learning_curve(History())


def test_a_confusion_matrix_has_its_counts_and_shares():
    truth = np.array(["cat", "cat", "cat", "dog", "cat"])
    predicted = np.array(["cat", "dog", "cat", "dog", "eel"])
    (axes,) = drawn(plotting.confusion_matrix(truth, predicted)).axes
    assert texts(axes) == ["2", "1", "1", "·", "1", "·", "·", "·", "·"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.5, 0.25, 0.25], [0, 1, 0], [0, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "eel"]
    assert axes.get_title(loc="left") == "Accuracy 60.00% of 5 rows"
    (axes,) = drawn(plotting.confusion_matrix(truth, predicted, ["eel", "dog", "cat"])).axes
    assert texts(axes) == ["·", "·", "·", "·", "1", "·", "1", "1", "2"]


def test_a_confusion_matrix_of_many_classes_is_colours_alone():
    classes = np.arange(60)
    figure = drawn(plotting.confusion_matrix(classes, classes[::-1]))
    assert texts(figure.axes[0]) == []
    assert len(figure.axes) == 2  # with a colour bar


def test_what_no_confusion_matrix_shows():
    with pytest.raises(ValueError, match=r"predicted must hold classes of .+; row 1 holds 7"):
        plotting.confusion_matrix([0, 1], [0, 7], [0, 1])
    with pytest.raises(ValueError, match=r"must both be \(rows,\), rows > 0; got \(2,\), \(3,\)"):
        plotting.confusion_matrix([0, 1], [0, 1, 1])


def test_tiles_are_the_units_weights_each_in_its_place_and_scale():
    net = NumpyNet(6, 5, 2)
    net.w1[:] = np.arange(30).reshape(5, 6) - 12
    (axes,) = drawn(plotting.first_layer_weights(net, (2, 3))).axes
    picture = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert axes.images[0].get_clim() == (-1, 1)
    tiles = [picture[3 * down : 3 * down + 2, 4 * across : 4 * across + 3] for down in range(3) for across in range(2)]
    for weights, tile in zip(net.w1, tiles, strict=False):
        np.testing.assert_allclose(tile.ravel(), weights / np.abs(weights).max(), rtol=1e-6)
    assert np.isnan(tiles[5]).all()  # there is no sixth unit
    assert np.isnan(picture[2]).all()  # a gap
    assert axes.get_title(loc="left") == "Weights of 5 hidden units"
    assert (
        drawn(plotting.first_layer_weights(net, (2, 3), units=2))
        .axes[0]
        .get_title(loc="left")
        .startswith("Weights of 2 of 5")
    )


def test_tiles_of_a_torch_net_are_its_first_linears():
    torch = pytest.importorskip("torch")
    from twolayer import TwoLayerNet

    torch.manual_seed(0)
    net = TwoLayerNet(784, 3, 2)
    weights = net.state_dict()["0.weight"].numpy()
    pictures = [drawn(plotting.first_layer_weights(of)).axes[0].images[0].get_array() for of in (net, weights)]
    np.testing.assert_array_equal(*map(np.ma.getdata, pictures))
    with pytest.raises(ValueError, match=r"net must have 28 × 28 inputs, as shape says; its w1 is \(3, 10\)"):
        plotting.first_layer_weights(np.ones((3, 10)))


def test_predicted_and_true_values():
    truth, predicted = np.arange(12.0).reshape(6, 2), np.arange(12.0).reshape(6, 2) + 0.5
    panels = drawn(plotting.predicted_and_true(truth, predicted, ["a", "b"])).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "b"]
    np.testing.assert_array_equal(panels[1].collections[0].get_offsets(), np.stack([truth[:, 1], predicted[:, 1]], 1))
    (axes,) = drawn(plotting.predicted_and_true(np.zeros(50_000), np.arange(50_000.0))).axes
    assert len(axes.collections[0].get_offsets()) <= 20_000
    with pytest.raises(ValueError, match="must be of one shape"):
        plotting.predicted_and_true(truth, predicted[:, 0])
