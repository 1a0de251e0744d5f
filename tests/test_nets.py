import pytest
import torch
from torch import nn

from shoal.config import read_config
from shoal.errors import ConfigError
from shoal.nets import NETS, ConvConfig, MlpConfig, NetConfig, ResnetConfig, parse_net
from shoal.nets.family import ACTIVATIONS, Activation, ImageShape
from shoal.nets.norms import Norm

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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv_may_repeat_pixels_instead_of_transposing(shape: ImageShape) -> None:
    nets = ConvConfig(width=4, latent=3, upsampling="nearest")
    check_both_ways(nets, shape)
    assert not any(isinstance(layer, nn.ConvTranspose2d) for layer in nets.decoder(shape, 3).modules())


# What runs of earlier versions saved: these names and shapes may not change.
SAVED: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "autoencoder": (
        {
            "0.weight": (32, 1, 4, 4),
            "0.bias": (32,),
            "2.weight": (64, 32, 4, 4),
            "2.bias": (64,),
            "6.weight": (256, 3136),
            "6.bias": (256,),
            "8.weight": (32, 256),
            "8.bias": (32,),
        },
        {
            "0.weight": (256, 32),
            "0.bias": (256,),
            "2.weight": (3136, 256),
            "2.bias": (3136,),
            "6.weight": (64, 32, 4, 4),
            "6.bias": (32,),
            "9.weight": (32, 1, 4, 4),
            "9.bias": (1,),
        },
    ),
    "dcgan": (
        {
            "0.weight": (32, 1, 4, 4),
            "0.bias": (32,),
            "2.weight": (64, 32, 4, 4),
            "2.bias": (64,),
            "3.weight": (64,),
            "3.bias": (64,),
            "3.running_mean": (64,),
            "3.running_var": (64,),
            "3.num_batches_tracked": (),
            "6.weight": (1, 3136),
            "6.bias": (1,),
        },
        {
            "0.weight": (3136, 100),
            "0.bias": (3136,),
            "2.weight": (64,),
            "2.bias": (64,),
            "2.running_mean": (64,),
            "2.running_var": (64,),
            "2.num_batches_tracked": (),
            "4.weight": (64, 32, 4, 4),
            "4.bias": (32,),
            "5.weight": (32,),
            "5.bias": (32,),
            "5.running_mean": (32,),
            "5.running_var": (32,),
            "5.num_batches_tracked": (),
            "7.weight": (32, 1, 4, 4),
            "7.bias": (1,),
        },
    ),
}


@pytest.mark.parametrize("preset", sorted(SAVED))
def test_checkpoints_of_earlier_runs_still_fit(preset: str) -> None:
    # The width of the preset's hidden layer was another one then.
    nets = read_config(preset, ["nets.hidden=256"] if preset == "autoencoder" else []).nets
    reads = nets.discriminator((1, 28, 28)) if preset == "dcgan" else nets.encoder((1, 28, 28), nets.latent)
    for net, saved in zip((reads, nets.decoder((1, 28, 28), nets.latent)), SAVED[preset], strict=True):
        assert [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()] == list(saved.items())


@pytest.mark.parametrize(
    ("hidden", "width", "expected"),
    [
        ((512, 256), None, [512, 256]),
        ((512, 256), 512, [512, 256]),
        ((512, 256), 1024, [1024, 512]),
        ((512, 256), 100, [100, 50]),
        ((64, 512, 3), 64, [8, 64, 1]),
        ((7,), 1, [1]),
    ],
)
def test_one_number_scales_all_hidden_layers(hidden: tuple[int, ...], width: int | None, expected: list[int]) -> None:
    nets = MlpConfig(hidden=hidden, width=width, latent=2)
    check_both_ways(nets, (1, 4, 4))
    encoder = [layer.out_features for layer in nets.encoder((1, 4, 4), 2) if isinstance(layer, nn.Linear)]
    decoder = [layer.in_features for layer in nets.decoder((1, 4, 4), 2) if isinstance(layer, nn.Linear)]
    assert encoder == [*expected, 2]
    assert decoder == [2, *reversed(expected)]


def test_a_width_without_hidden_layers_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"nets: width=8 scales the hidden layers and hidden=\[\] has none; set hidden"
    ):
        parse_net({"name": "mlp", "hidden": [], "width": 8})


@pytest.mark.parametrize("kind", [ConvConfig, ResnetConfig])
def test_what_reads_images_may_have_another_norm_than_what_writes_them(kind: type[ConvConfig | ResnetConfig]) -> None:
    nets = kind(width=4, latent=3, norm="batch", encoder_norm="none")
    shape = (1, 28, 28)
    for reads in (nets.encoder(shape, 3), nets.discriminator(shape, 2), nets.map_encoder(shape, 3)):
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in reads.modules())
    for writes in (nets.decoder(shape, 3), nets.decoder(shape, 3, 2), nets.map_decoder(shape, 3)):
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in writes.modules())


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
    "shape", [(1, 30, 30), (3, 28, 32), (1, 1, 2), (4, 32, 32), (2, 64, 64), (1, 256, 256), (1, 7, 7)], ids=str
)
@pytest.mark.parametrize("kind", [ConvConfig, ResnetConfig])
def test_other_images_are_refused_with_the_sizes_that_it_makes(
    kind: type[ConvConfig | ResnetConfig], shape: ImageShape
) -> None:
    nets = kind()
    for build in (nets.encoder, nets.decoder, nets.discriminator, nets.map_encoder, nets.map_decoder):
        with pytest.raises(ConfigError) as caught:
            build(shape, 3)
        said = str(caught.value)
        assert f"nets.name={nets.name} cannot make images of {'x'.join(map(str, shape))};" in said
        assert "squares of 28, 32, 64, 128 pixels with 1 or 3 channels" in said
        assert "nets.name=mlp" in said


def test_a_section_is_read_by_the_family_that_it_names() -> None:
    for name, kind in NETS.items():
        assert type(parse_net({"name": name, "latent": 7})) is kind
    with pytest.raises(ConfigError, match=r"unknown key nets.norm"):
        parse_net({"name": "mlp", "norm": "group"})
    with pytest.raises(ConfigError, match=r"nets.name is missing; set nets.name to one of conv, mlp, resnet"):
        parse_net(None)
