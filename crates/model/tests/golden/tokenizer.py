"""Writes tokenizer.json and tokenizer.safetensors: a thousand captions and their tokens by OpenCLIP's tokenizer.

Made with open_clip_torch 3.3.0, ftfy 6.3.1, regex 2026.11.15, safetensors 0.8.0, torch 2.15.0:
    python tokenizer.py
"""

import json
import random
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

here = Path(__file__).parent
rng = random.Random(20)
CONTEXT = 32

who = "a man|a woman|a child|an older person|somebody|people|a cyclist|Two girls|THE BOY|a café owner".split("|")
wear = "a red T-shirt|blue jeans|a long-sleeved shirt|grey trousers|a backpack|sunglasses|a 3/4-length coat|a dress with polka-dots|Nike shoes|a hat".split("|")
where = "on a street|at night|in front of a shop|near the Champs-Élysées|in Zürich|in 東京|on the 21st of May, 2019|at 10:45 p.m.|@home|#city".split("|")
how = "photo|picture|close-up|low-res image|JPEG|cctv frame|drawing|selfie|b&w print|snapshot".split("|")
odd = [
    "", " ", "   leading and trailing   ", "tabs\tand\nnew\r\nlines", "it's they're I've we'll I'd I'm don't", "rock'n'roll o'clock 'tis",
    "100% cotton, size 38½", "£20 €30 $40", "C++ & C#", "a/b\\c|d", "e-mail: someone@example.com", "https://example.com/a?b=c&d=e",
    "!!!???...", "___under_scores___", "CamelCaseWords and ALLCAPS", "naïve façade coöperate", "Straße Ünïcödé ÅÄÖ", "Привет мир", "你好,世界",
    "こんにちは", "안녕하세요", "שלום", "مرحبا", "😀 a smile 👍🏽", "👩‍👩‍👧 family", "a &amp; b", "a &amp;amp; b", "&lt;b&gt;bold&lt;/b&gt;", "&quot;quoted&quot;",
    "it&#39;s", "caf&eacute;", "&hearts &unknown; &", "“curly” ‘quotes’ and an apostrophe’s", "ﬁne ﬂour oﬃce", "ＦＵＬＬ　ｗｉｄｔｈ １２３", "soft\u00adhyphen",
    "zero\u200bwidth", "non\u00a0breaking", "em—dash en–dash", "ellipsis…", "<start_of_text> literal <end_of_text>", "control\x01 characters\x07", "1234567890",
    "x" * 60, "supercalifragilisticexpialidocious", "donaudampfschifffahrtsgesellschaft", "3.14159", "½ ⅓ ² ³", "№ ™ © ®", "a photo of a photo of a photo " * 6,
]
captions = list(odd)
while len(captions) < 1000:
    text = rng.choice([
        lambda: f"a {rng.choice(how)} of {rng.choice(who)} {rng.choice(where)}",
        lambda: f"{rng.choice(who)} wearing {rng.choice(wear)} and {rng.choice(wear)}",
        lambda: f"{rng.choice(who)}, {rng.choice(wear)}, {rng.choice(wear)}; {rng.choice(where)}.",
        lambda: f"{rng.choice(how)}: {rng.choice(who)} {rng.choice(where)} ({rng.randint(0, 9999)})",
        lambda: " ".join(rng.choice(who + wear + where + how) for _ in range(rng.randint(1, 14))),
        lambda: "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDE 0123456789-'!.,&?éüß東") for _ in range(rng.randint(1, 40))),
    ])()
    captions.append(rng.choice([str, str.upper, str.title, str])(text))

tokens = open_clip.tokenizer.SimpleTokenizer()(captions, context_length=CONTEXT)
(here / "tokenizer.json").write_text(json.dumps(captions, ensure_ascii=True, indent=0) + "\n")
save_file({"tokens": tokens.to(torch.int32)}, here / "tokenizer.safetensors")
