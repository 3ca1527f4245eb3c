"""What the parity scripts share: texts, weights and pixels that any framework can make, open_clip's model of an architecture.

PEER, the environment of the scripts, has clipkit, open_clip_torch 3.3.0 and transformers: `make .venv-peer/.installed`.
"""

import functools
import math

import torch
from torch import Tensor, nn

from clipkit.model.architectures import Architecture, ResNetSizes, TextSizes, ViTSizes

TEXTS = (
    "a photo of a cat",
    "A Photo of a CAT.",
    "",
    "  white \t space\n everywhere  ",
    "Tom &amp;amp; Jerry &lt;3 caf&eacute;",
    "donâ€™t panic: schÃ¶n",
    "it's we're they've I'll I'd 's 't",
    "日本語の写真です",
    "Ελληνικά ΌΣΟΣ κείμενα",
    "Фотография кота",
    "صورة قطة",
    "תמונה של חתול",
    "รูปแมว",
    "बिल्ली की तस्वीर",
    "한국어 사진",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "İstanbul'da ışık",
    "ﬁne ligatures ① ½ Ⅷ",
    "1234567890 3.14 £€¥ #hash @name http://example.org/a?b=c&d=e",
    "a photo of <start_of_text> and <end_of_text> inside",
    "zero\u200bwidth\u00a0no\u00adbreak\ufeff",
    "e\u0301 combining, \u1e9e capital sharp s",
    "long " * 200,
    "supercalifragilisticexpialidocious" * 20,
    "!!! ??? ... --- ___ ''' \"\"\"",
    "C:\\path\\to\\file.jpg IMG_20160716_113957.JPG",
    "ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ Σ ΑΣ.",
    "DİYARBAKIR ısırgan STRASSE GROẞ straße ǅ ŉ K Å",
    "ＦＵＬＬ ｗｉｄｔｈ １２３ ｶﾀｶﾅ ﾊﾟ",
    "مَرْحَبًا ‏بالعالم‎ ٣٤٥ שָׁלוֹם",
    "क्षत्रिय हिन्दी ४२ তুমি ৪ தமிழ் ไทยน้ำ ភាសាខ្មែរ မြန်မာ",
    "ქართული Հայերեն አማርኛ ᏣᎳᎩ ꭰ ᐃᓄᒃᑎᑐᑦ 𐐀𐐨 𝐁𝒸𝟙",
    "1️⃣ 👍🏽 🇩🇪🇫🇷 ❤️☺︎ 🧑🏿‍🦰™©",
    "nul\x00 unit\x1fseparator next\x85line line\u2028separator mongolian\u180evowel ideographic\u3000space",
    "&#0; &#150; &notin &eacute &;&ACUTE; &amp;#39; &nbsp;&#x1F600;",
    "â€œquotedâ€\x9d Ã‰tÃ© ðŸ˜€ вЂ” \x91q\x92",
    "WE'RE THEY'LL I'D x's's ''t 's' ＇s ʼs ’s",
    "<START_OF_TEXT> <|startoftext|> <start_of_text </w> end_of_text>",
    "a\u0301\u0323 \u0301b e\u20e3 \u0489\u0e4d\u094d\u3099",
    "½ Ⅷ ① ² 〇 十 ৪ x² H₂O №5 ∑♪ …—–",
    "\u200eltr\u202ertl\u202c \u2066isolate\u2069 word\u2060joiner soft\xadhyphen",
)

REFERENCE_TEXT = TextSizes(width=32, layers=2, heads=2, context=24)
REFERENCES = (
    Architecture("reference-ViT", 32, 16, ViTSizes(8, 2, 32, 2), REFERENCE_TEXT),
    Architecture("reference-ViT-gelu", 32, 16, ViTSizes(8, 2, 32, 2), REFERENCE_TEXT, activation="gelu"),
    Architecture("reference-RN", 64, 16, ResNetSizes((1, 2, 1, 1), 8, heads=4), REFERENCE_TEXT),
)


def formula_weights(model: nn.Module) -> None:
    """Fill a state dict, name by name, from a formula that any framework can repeat: sines of growing frequency, scaled by fan-in."""
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        n = torch.arange(tensor.numel(), dtype=torch.float64)
        wave = torch.sin(0.37 * n + 1.7 * torch.sin(0.011 * n) + sum(name.encode()) % 97)
        if name == "logit_scale":
            value = torch.full_like(wave, 2.0)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            value = 1 + 0.1 * wave
        elif tensor.ndim <= 1:
            value = 0.1 * wave
        else:
            value = wave / math.sqrt(tensor[0].numel())
        tensor.copy_(value.view(tensor.shape).float())


def formula_pixels(size: int, count: int = 2) -> Tensor:
    """Smooth float pixels (B, 3, size, size) from a formula."""
    n = torch.arange(count * 3 * size * size, dtype=torch.float64)
    return torch.sin(0.05 * n + 0.002 * n.sqrt()).view(count, 3, size, size).float()


def let_open_clip_read_with_newer_webdataset() -> None:
    """With webdataset 0.2.111 (not 0.2.86) a mark stands behind each tar, at which open_clip 3.3.0's reader stops: leave the marks out."""
    from open_clip_train import data

    data.tar_file_expander = functools.partial(data.tar_file_expander, eof_value=None)


def peer_model(ours: Architecture) -> nn.Module:
    """open_clip's model of one of our architectures."""
    import open_clip

    image, text = ours.image, ours.text
    if isinstance(image, ResNetSizes):
        # open_clip's ResNets have width * 32 / head_width heads.
        vision = {"layers": image.blocks, "width": image.width, "patch_size": None, "head_width": image.width * 32 // image.heads}
    else:
        vision = {"layers": image.layers, "width": image.width, "patch_size": image.patch_size, "head_width": image.width // image.heads}
    model = open_clip.CLIP(
        embed_dim=ours.embed_width,
        vision_cfg={**vision, "image_size": ours.image_size},
        text_cfg={"context_length": text.context, "width": text.width, "heads": text.heads, "layers": text.layers},
        quick_gelu=ours.activation == "quick_gelu",
    )
    return model.eval()
