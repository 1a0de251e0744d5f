import pytest
import torch
from torch import nn

from shoal.errors import ConfigError
from shoal.nets import NETS, ConvConfig, MlpConfig, NetConfig, parse_net
from shoal.nets.conv import Norm
from shoal.nets.family import ACTIVATIONS, Activation, ImageShape

SHAPES: list[ImageShape] = [(channels, size, size) for size in (28, 32, 64, 128) for channels in (1, 3)]


def check_both_ways(nets: NetConfig, shape: ImageShape, num: int = 2) -> None:
    images = torch.rand(num, *shape)
    codes = nets.encoder(shape, nets.latent)(images)
    assert codes.shape == (num, nets.latent)
    assert nets.encoder(shape, 1)(images).shape == (num, 1)
    again = nets.decoder(shape, nets.latent)(codes)
    assert again.shape == images.shape
    assert again.dtype == torch.float32
    again.sum().backward()


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv_reads_and_writes_every_size_it_names(shape: ImageShape, norm: Norm) -> None:
    check_both_ways(ConvConfig(width=4, latent=3, norm=norm), shape)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 30, 30), (2, 5, 7), (4, 1, 1)], ids=str)
def test_mlp_reads_and_writes_any_shape(shape: ImageShape) -> None:
    check_both_ways(MlpConfig(hidden=(4, 3), latent=3), shape)


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("width", [1, 3, 5, 7, 12])
def test_odd_widths_are_as_good_as_any(width: int, norm: Norm) -> None:
    check_both_ways(ConvConfig(width=width, latent=3, norm=norm), (1, 32, 32))


@pytest.mark.parametrize("hidden", [0, 1, 6])
def test_conv_may_have_a_layer_before_the_latent(hidden: int) -> None:
    nets = ConvConfig(width=4, latent=3, hidden=hidden)
    check_both_ways(nets, (3, 28, 28))
    widths = [layer.out_features for layer in nets.encoder((3, 28, 28), 3).children() if isinstance(layer, nn.Linear)]
    assert widths == ([hidden, 3] if hidden else [3])


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5, 4)])
def test_mlp_mirrors_its_widths(hidden: tuple[int, ...]) -> None:
    nets = MlpConfig(hidden=hidden, latent=2)
    check_both_ways(nets, (1, 4, 4))

    def widths(net: nn.Module) -> list[tuple[int, int]]:
        return [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, nn.Linear)]

    down = widths(nets.encoder((1, 4, 4), 2))
    assert [before for before, _ in down] == [16, *hidden]
    assert widths(nets.decoder((1, 4, 4), 2)) == [(after, before) for before, after in reversed(down)]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_sits_between_the_layers_and_never_after_the_last(name: Activation) -> None:
    kind = type(ACTIVATIONS[name]())
    for nets in (MlpConfig(hidden=(8,), activation=name), ConvConfig(width=4, activation=name)):
        for net in (nets.encoder((1, 28, 28), 3), nets.decoder((1, 28, 28), 3)):
            layers = list(net.children())
            assert any(isinstance(layer, kind) for layer in layers)
            assert not isinstance([layer for layer in layers if not isinstance(layer, nn.Unflatten)][-1], kind)


@pytest.mark.parametrize("norm", [nn.GroupNorm, nn.BatchNorm2d])
def test_conv_has_no_norm_next_to_the_image(norm: type[nn.Module]) -> None:
    nets = ConvConfig(width=4, norm="group" if norm is nn.GroupNorm else "batch")
    down = [type(layer) for layer in nets.encoder((1, 32, 32), 3).children()]
    assert down[:2] == [nn.Conv2d, nn.ReLU]
    assert norm in down
    assert next(reversed(list(nets.decoder((1, 32, 32), 3).children()))).__class__ is nn.ConvTranspose2d


def test_initial_weights_may_be_those_of_dcgan() -> None:
    torch.manual_seed(0)
    nets = ConvConfig(width=16, latent=30, hidden=40, norm="batch", init_std=0.02)
    for net in (nets.encoder((3, 32, 32), 30), nets.decoder((3, 32, 32), 30)):
        for layer in net.children():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
                assert abs(layer.weight.mean().item()) < 0.003
                assert layer.bias is not None
                assert not layer.bias.any()
            elif isinstance(layer, nn.BatchNorm2d):
                assert (layer.weight == 1).all()


def test_a_discriminator_without_batch_statistics_judges_each_image_alone() -> None:
    torch.manual_seed(0)
    net = ConvConfig(width=4, norm="group").encoder((1, 28, 28), 1)
    images = torch.rand(4, 1, 28, 28)
    one_by_one = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images), one_by_one)


@pytest.mark.parametrize(
    "shape", [(1, 30, 30), (3, 28, 32), (1, 1, 2), (4, 32, 32), (2, 64, 64), (1, 256, 256)], ids=str
)
def test_conv_refuses_other_images_and_names_the_sizes_it_makes(shape: ImageShape) -> None:
    for build in (ConvConfig().encoder, ConvConfig().decoder):
        with pytest.raises(ConfigError) as caught:
            build(shape, 3)
        said = str(caught.value)
        assert f"cannot make images of {'x'.join(map(str, shape))};" in said
        assert "squares of 28, 32, 64, 128 pixels with 1 or 3 channels" in said
        assert "nets.name=mlp" in said


def test_a_section_is_read_by_the_family_that_it_names() -> None:
    for name, kind in NETS.items():
        assert type(parse_net({"name": name, "latent": 7})) is kind
    with pytest.raises(ConfigError, match=r"unknown key nets.width"):
        parse_net({"name": "mlp", "width": 3})
    with pytest.raises(ConfigError, match=r"nets.name is missing; set nets.name to one of conv, mlp"):
        parse_net(None)
