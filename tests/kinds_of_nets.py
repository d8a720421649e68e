"""Small nets of the kinds that people train: none is run, only their parts count."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import nn

D = 8


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))
        self.output = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)


class CrossAttention(SelfAttention):
    pass


class OneBlock(nn.Module):
    """A transformer of few layers: attention and norms beside two linear layers in a Sequential."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = SelfAttention()
            self.feed_forward = nn.Sequential(nn.Linear(D, 2 * D), nn.ReLU(), nn.Linear(2 * D, D))
            self.norm = nn.LayerNorm(D)

    def __init__(self, num_blocks: int = 1) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Dropout(), nn.Linear(3, D))
        self.blocks = nn.ModuleList(self.Block() for _ in range(num_blocks))
        self.out = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.ReLU(), nn.Linear(D, 2))


class Bert(nn.Module):
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.ModuleDict({"self": SelfAttention(), "output": nn.Linear(D, D)})
            self.intermediate, self.output = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
            self.norm = nn.LayerNorm(D)

    def __init__(self, num_layers: int = 3) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word": nn.Embedding(20, D),
                "position": nn.Embedding(6, D),
                "segment": nn.Embedding(2, D),
                "norm": nn.LayerNorm(D),
            }
        )
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(self.Layer() for _ in range(num_layers))
        self.pooler = nn.Linear(D, D)
        self.decoder = nn.Linear(D, 20, bias=False)
        self.decoder.weight = self.embeddings["word"].weight
        self.bias = nn.Parameter(torch.zeros(20))


class Gpt(nn.Module):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
            self.attn = nn.ModuleDict({"c_attn": nn.Linear(D, 3 * D), "c_proj": nn.Linear(D, D)})
            self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(20, D),
                "wpe": nn.Embedding(6, D),
                "h": nn.ModuleList(self.Block() for _ in range(3)),
                "ln_f": nn.LayerNorm(D),
            }
        )
        self.lm_head = nn.Linear(D, 20)


class Scale(nn.Module):
    """A norm without a mean, as T5 and LLaMA have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))


class T5(nn.Module):
    class Block(nn.Module):
        def __init__(self, biased: bool, cross: bool) -> None:
            super().__init__()
            self.layer = nn.ModuleList([SelfAttention()])
            if biased:
                self.relative_bias = nn.Embedding(4, 2)
            if cross:
                self.layer.append(CrossAttention())
            self.layer.append(nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D)))
            self.norm = Scale()

    class Stack(nn.Module):
        def __init__(self, cross: bool) -> None:
            super().__init__()
            self.block = nn.ModuleList(T5.Block(place == 0, cross) for place in range(2))
            self.final_layer_norm = Scale()

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(20, D)
        self.encoder, self.decoder = self.Stack(False), self.Stack(True)
        self.lm_head = nn.Linear(D, 20, bias=False)


class Whisper(nn.Module):
    """Speech: convolutions, a learned table of positions, encoder and decoder of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(4, D, 3), nn.Conv1d(D, D, 3)
        self.positions = nn.Parameter(torch.zeros(6, D))
        self.transformer = nn.Transformer(D, 2, 2, 2, 2 * D)
        self.tokens = nn.Embedding(10, D)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.rnn = nn.LSTM(4, D, 2, bidirectional=True)
        self.h0 = nn.Parameter(torch.zeros(4, 1, D))
        self.fc = nn.Linear(2 * D, 11)


class SeqToSeq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, D)
        self.encoder = nn.GRU(D, D)
        self.cells = nn.ModuleList([nn.GRUCell(D, D), nn.GRUCell(D, D)])
        self.v = nn.Parameter(torch.zeros(D))
        self.attend = nn.Bilinear(D, D, 1)
        self.out = nn.Linear(D, 20)


class DoubleConv(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            *(nn.Conv2d(inner, outer, 3), nn.BatchNorm2d(outer), nn.ReLU()),
            *(nn.Conv2d(outer, outer, 3), nn.BatchNorm2d(outer), nn.ReLU()),
        )


class UNet(nn.Module):
    class Down(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.pool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inner, outer))

    class Up(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(inner, outer, 2)
            self.conv = DoubleConv(inner, outer)

    def __init__(self) -> None:
        super().__init__()
        self.inc = DoubleConv(3, 4)
        self.down1, self.down2 = self.Down(4, 8), self.Down(8, 16)
        self.up1, self.up2 = self.Up(16, 8), self.Up(8, 4)
        self.outc = nn.Conv2d(4, 2, 1)


class ResidualBlock(nn.Module):
    def __init__(self, embedded: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, D), nn.GroupNorm(2, D)
        self.conv1, self.conv2 = nn.Conv2d(D, D, 3), nn.Conv2d(D, D, 3)
        if embedded:
            self.time = nn.Linear(embedded, D)


class Diffusion(nn.Module):
    """A U-Net with time embeddings, whose middle is no member of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.ones(4))
        self.time_mlp = nn.Sequential(nn.Linear(4, D), nn.SiLU(), nn.Linear(D, D))
        self.init_conv = nn.Conv2d(3, D, 7)
        self.downs = nn.ModuleList(
            nn.ModuleList([ResidualBlock(D), SelfAttention(), nn.Conv2d(D, D, 4)]) for _ in range(2)
        )
        self.mid_block1, self.mid_attn = ResidualBlock(D), SelfAttention()
        self.mid_block2 = ResidualBlock(D)
        self.ups = nn.ModuleList(
            nn.ModuleList([ResidualBlock(D), SelfAttention(), nn.ConvTranspose2d(D, D, 4)])
            for _ in range(2)
        )
        self.null = nn.ParameterDict({"class": nn.Parameter(torch.zeros(D))})
        self.final_conv = nn.Conv2d(D, 3, 1)


class Gan(pl.LightningModule):
    """A residual generator beside a plain discriminator."""

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.const = nn.Parameter(torch.ones(1, D, 4, 4))
            self.project = nn.Linear(4, D)
            self.body = nn.Sequential(*(ResidualBlock() for _ in range(3)))
            self.to_rgb = nn.Sequential(nn.Conv2d(D, 3, 1), nn.Tanh())

    class Discriminator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts: list[nn.Module] = []
            for inner, outer in [(3, 4), (4, 8), (8, 16), (16, 32)]:
                parts += [nn.Conv2d(inner, outer, 4), nn.BatchNorm2d(outer), nn.LeakyReLU()]
            self.main = nn.Sequential(*parts, nn.Conv2d(32, 1, 4))

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = self.Generator(), self.Discriminator()


class Vae(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU())
        self.fc_mu, self.fc_var = nn.Linear(8, 2), nn.Linear(8, 2)
        self.fc_decode = nn.Linear(2, 8)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3)
        )
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.error = torchmetrics.MeanSquaredError()


class Contrastive(pl.LightningModule):
    """Two encoders, of which one is the frozen average of the other, and a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_q = nn.Sequential(*(ResidualBlock() for _ in range(3)), nn.Flatten())
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 4))
        self.logit_scale = nn.Parameter(torch.zeros(()))


class GraphConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(D, D))
        self.attention = nn.ParameterList([torch.zeros(D), torch.zeros(D)])
        self.norm = nn.BatchNorm1d(D)


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.atoms = nn.ModuleList([nn.Embedding(5, D), nn.Embedding(4, D)])
        self.virtual_node = nn.Parameter(torch.zeros(1, D))
        self.convs = nn.ModuleList(GraphConv() for _ in range(3))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.ReLU()) for _ in range(2))
        self.pred = nn.Linear(D, 1)


class GatedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 2 * D)
        self.norm = nn.LayerNorm(D)


class Forecaster(pl.LightningModule):
    """Gated residual networks for the variables and, by themselves, around the attention."""

    class Selection(nn.Module):
        def __init__(self, names: list[str]) -> None:
            super().__init__()
            self.single = nn.ModuleDict({name: GatedResidual() for name in names})
            self.flat = GatedResidual()

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"month": nn.Embedding(12, D)})
        self.prescalers = nn.ModuleDict({name: nn.Linear(1, D) for name in ("price", "volume")})
        self.static = self.Selection(["store"])
        self.encoder_variables = self.Selection(["price", "volume"])
        self.context = GatedResidual()
        self.lstm_encoder, self.lstm_decoder = nn.LSTM(D, D), nn.LSTM(D, D)
        self.enrichment = GatedResidual()
        self.attention = nn.MultiheadAttention(D, 2)
        self.feed_forward = GatedResidual()
        self.output = nn.Linear(D, 7)


class Detector(nn.Module):
    """A backbone of stages, pyramids in lists, heads shared over levels with a scale for each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, D, 3), nn.BatchNorm2d(D), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock() for _ in range(count))) for count in (2, 3)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(D, D, 1) for _ in range(2))
        self.queries = nn.Parameter(torch.zeros(10, D))
        self.level_scales = nn.ParameterList([torch.ones(1) for _ in range(3)])
        self.cls_head, self.box_head = nn.Conv2d(D, 5, 3), nn.Conv2d(D, 4, 3)


class Segmenter(nn.Module):
    """Atrous convolutions side by side in a list, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, D, 3), nn.Sequential(*(ResidualBlock() for _ in range(3)))
        )
        self.aspp = nn.ModuleList(
            nn.Sequential(nn.Conv2d(D, D, 3), nn.BatchNorm2d(D), nn.ReLU()) for _ in range(3)
        )
        self.decoder = nn.Sequential(nn.Conv2d(D, D, 1), nn.BatchNorm2d(D), nn.Conv2d(D, 2, 1))


class CenterLoss(nn.Module):
    """A loss whose centers are trained with the network."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(4, D))


class PerceptualLoss(nn.Module):
    """A frozen network that compares images, and a discriminator that is trained beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).requires_grad_(False)
        self.discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))


class FaceNet(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*(ResidualBlock() for _ in range(3)), nn.Linear(D, D))
        self.loss, self.perceptual = CenterLoss(), PerceptualLoss()
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(4)


class NamedBlocks(nn.Module):
    """Blocks under a name each, in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3)
        self.layer1, self.layer2, self.layer3 = (ResidualBlock() for _ in range(3))
        self.fc = nn.Linear(D, 2)


class OwnWeights(pl.LightningModule):
    """All weights belong to the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2))


KINDS: dict[str, Any] = {
    "one block": OneBlock,
    "few blocks": lambda: OneBlock(3),
    "BERT": Bert,
    "GPT": Gpt,
    "T5": T5,
    "speech": Whisper,
    "CRNN": Recurrent,
    "sequence to sequence": SeqToSeq,
    "U-Net": UNet,
    "diffusion": Diffusion,
    "GAN": Gan,
    "VAE": Vae,
    "contrastive": Contrastive,
    "graph": GraphNet,
    "forecasting": Forecaster,
    "detection": Detector,
    "segmentation": Segmenter,
    "trained losses": FaceNet,
    "named blocks": NamedBlocks,
    "own weights": OwnWeights,
}
