"""What the models of packages are fed: pictures of the size they read, and tones."""

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
inputs = pytest.importorskip("tools.trained_zoo.inputs")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Pictures that get lighter from left to right, and faces."""
    row = np.linspace(0, 255, 300).astype(np.uint8)
    faces = np.random.default_rng(0).uniform(0, 1, (100, 25, 25))

    def member(package, name):
        path = tmp_path / name.rpartition("/")[2]
        if path.suffix == ".npy":
            np.save(path, faces)
        else:
            Image.fromarray(np.tile(row, (260, 1))).save(path)
        return path

    monkeypatch.setattr(inputs, "member", member)


def test_pieces_of_pages_are_wider_than_high_and_of_both_signs(pictures):
    found = inputs.text(3, 48, 320, lines=1)
    assert (found.shape, found.dtype) == ((3, 3, 48, 320), np.float32)
    assert -1 <= found.min() < 0 < found.max() <= 1
    assert (np.diff(found.mean((1, 2)), axis=1) >= -1e-6).all()  # no piece is mirrored
    np.testing.assert_array_equal(found, inputs.text(3, 48, 320, lines=1))


def test_a_piece_is_no_larger_than_its_picture(pictures):
    assert inputs.photographs(6, 224, 224).shape == (6, 3, 224, 224)
    assert inputs.text(2, 80, 640, lines=20).shape == (2, 3, 80, 640)


def test_faces_have_the_numbers_of_pixels(pictures):
    found = inputs.faces(4, 64)
    assert found.shape == (4, 3, 64, 64)
    assert found.min() >= 0
    assert 100 < found.max() <= 255


def test_tones_are_normalised_and_differ():
    found = inputs.tones(5, 1024)
    assert found.shape == (5, 1024)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=1), 1, atol=1e-5)
    assert abs(np.corrcoef(found)[0, 1]) < 0.9


def test_music_and_the_calls_of_bats_are_spectrograms():
    music, calls = inputs.music(3), inputs.calls(3)
    assert (music.shape, music.dtype) == ((3, 187, 96), np.float32)
    assert (calls.shape, calls.dtype) == ((3, 1, 128, 256), np.float32)
    for found in (music, calls):
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert (found.std((-1, -2)) > 0.01).all()
    np.testing.assert_array_equal(calls, inputs.calls(3))
