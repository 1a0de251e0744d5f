import hashlib
import io
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from shoal.errors import ConfigError, DataError
from shoal.quality import inception
from shoal.quality.inception import SHA256, inception_extractor


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of other weights for the same network: those of 2015 may not be had everywhere."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
        # Its constructor would download: stopped at the point where it asks for the weights, the layers are there.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
            empty = io.BytesIO()
            torch.save({}, empty)
            empty.seek(0)
            net.__init__("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)
    torch.save(net.state_dict(), path)
    return path


def test_only_the_weights_of_2015_may_be_called_fid(stand_in: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the sha256 [0-9a-f]{8}…, and only 6726825d… .* may be called FID"):
        inception_extractor(stand_in)
    with pytest.raises(DataError, match=r"is not a file; give the path of weights-inception-2015-12-05-6726825d\.pth"):
        inception_extractor(tmp_path / "nowhere.pth")
    with pytest.raises(DataError, match="is not a file"):
        inception_extractor(tmp_path)


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256((tmp_path / "module.pth").read_bytes()).hexdigest())
    with pytest.raises(DataError, match="holds no weights"):
        inception_extractor(tmp_path / "module.pth")


def test_its_features_are_those_of_torch_fidelity(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(stand_in.read_bytes()).hexdigest())
    before = torch.random.get_rng_state()
    extractor = inception_extractor(stand_in)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert extractor.distance_name == "fid"
    assert extractor.id == f"inception:{inception.SHA256[:8]}"
    pixels = torch.randint(256, (1, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features, logits = extractor(pixels)
    assert features.shape == (1, 2048)
    assert logits is not None
    assert logits.shape == (1, 1008)
    theirs = FeatureExtractorInceptionV3("", ["2048", "logits_unbiased"], feature_extractor_weights_path=stand_in)
    assert torch.equal(theirs(pixels)[0], features)
    grey = pixels[:, :1]
    assert torch.equal(extractor(grey)[0], extractor(grey.repeat(1, 3, 1, 1))[0])


def test_without_torch_fidelity_it_says_what_to_install(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(stand_in.read_bytes()).hexdigest())
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ConfigError, match=r"pip install 'shoal\[fid\]'"):
        inception_extractor(stand_in)


def test_the_hash_is_that_of_the_file_name() -> None:
    assert SHA256.startswith("6726825d")
    assert len(SHA256) == 64
