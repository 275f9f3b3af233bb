"""Make the data of `toc demo`: a small VQ autoencoder of scikit-learn's handwritten digits, and what its encoder sees.

    python examples/make_demo_data.py toc_cli/demo

The model has the taming-transformers layout (`quant_conv`, `quantize.embedding`, `post_quant_conv`), so every emit mode applies to it.
Real inputs: the 1,797 images of the UCI handwritten digits that scikit-learn ships. Same bytes on every run of one platform.
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

CODES, DIM, WIDTH = 96, 32, 48
HELD_OUT = 360  # images whose features are shipped; the model never trained on them


class Quantize(nn.Module):
    """Nearest code, straight-through, with the commitment loss of VQ-VAE (arXiv 1711.00937, equation 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CODES, DIM)

    def tokens(self, rows: Tensor) -> Tensor:
        """Rows (N, D) to the nearest codes (N,)."""
        return torch.cdist(rows, self.embedding.weight).argmin(1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:  # z (B, D, 4, 4)
        rows = z.permute(0, 2, 3, 1)  # (B, 4, 4, D)
        tokens = self.tokens(rows.flatten(0, 2))
        q = self.embedding(tokens).view_as(rows)
        loss = F.mse_loss(q, rows.detach()) + 0.25 * F.mse_loss(rows, q.detach())
        return (rows + (q - rows).detach()).permute(0, 3, 1, 2), loss


class Autoencoder(nn.Module):
    """8x8 grey image -> 4x4 tokens -> 8x8 image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, WIDTH, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 1),
        )
        self.quant_conv = nn.Conv2d(WIDTH, DIM, 1)
        self.quantize = Quantize()
        self.post_quant_conv = nn.Conv2d(DIM, WIDTH, 1)
        self.decoder = nn.Sequential(
            nn.SiLU(), nn.ConvTranspose2d(WIDTH, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        q, loss = self.quantize(self.quant_conv(self.encoder(images)))
        return self.decoder(self.post_quant_conv(q)), loss


def train(images: Tensor, epochs: int = 40) -> Autoencoder:
    """Adam, batch 128; the codebook starts at encoder outputs drawn at random."""
    torch.manual_seed(0)
    model = Autoencoder()
    with torch.no_grad():
        rows = model.quant_conv(model.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(rows[torch.randperm(len(rows))[:CODES]])
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128):
            image, loss = model(images[batch])
            (F.mse_loss(image, images[batch]) + loss).backward()
            optimiser.step()
            optimiser.zero_grad()
    return model.eval()


def write_features(model: Autoencoder, images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """What reaches the quantiser's projection, the tokens that the model chooses for it, the images and their classes."""
    pixels = torch.from_numpy(images / 16).float()[:, None]
    with torch.no_grad():
        half = model.encoder(pixels).permute(0, 2, 3, 1).flatten(1, 2).numpy().astype(np.float16)  # (N, 16, W)
        rows = torch.from_numpy(half.astype(np.float32)).reshape(-1, WIDTH)
        tokens = (
            model.quantize.tokens(model.quant_conv(rows[..., None, None])[..., 0, 0]).reshape(half.shape[:2]).numpy()
        )
    with h5py.File(path, "w", track_order=True) as file:
        for name, at in (("upper", slice(0, 8)), ("lower", slice(8, 16))):
            file.create_dataset(
                name, data=half[:, at], chunks=(60, 8, WIDTH), compression="gzip", shuffle=True, track_times=False
            )
            file[name].attrs["toc.model"], file[name].attrs["toc.side"] = "Autoencoder", "encoder"
            file.create_dataset(
                f"{name}.tokens", data=tokens[:, at].astype(np.int16), compression="gzip", track_times=False
            )
        file.create_dataset("label", data=labels.astype(np.int64), track_times=False)
        file.create_dataset("images", data=images.astype(np.uint8), compression="gzip", track_times=False)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    digits = load_digits()
    model = train(torch.from_numpy(digits.images / 16).float()[HELD_OUT:, None])
    save_file(model.state_dict(), folder / "digits_vq.safetensors")
    write_features(model, digits.images[:HELD_OUT], digits.target[:HELD_OUT], folder / "digits_features.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
