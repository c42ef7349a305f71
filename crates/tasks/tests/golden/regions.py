"""Golden values of two-stage search's boxes, from torchvision.

Run: python regions.py      (writes regions.json beside itself)
Made with torch 2.15.0, torchvision 0.29.2.
"""

import json
from pathlib import Path

import torch
from torchvision.models.detection import _utils as utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

torch.manual_seed(0)
SIZES, RATIOS, STRIDE, ROWS, COLUMNS = (16.0, 45.0), (0.5, 1.0, 2.0), 8, 9, 7
HEIGHT, WIDTH = 70, 53
generator = AnchorGenerator(sizes=(SIZES,), aspect_ratios=(RATIOS,))
image = torch.zeros(1, 3, ROWS * STRIDE, COLUMNS * STRIDE)
anchors = generator(ImageList(image, [(HEIGHT, WIDTH)]), [torch.zeros(1, 1, ROWS, COLUMNS)])[0]


def xywh(boxes):
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().tolist()


start = torch.rand(5, 2) * torch.tensor([35.0, 45.0])
people = torch.cat([start, start + 4 + torch.rand(5, 2) * torch.tensor([14.0, 30.0])], 1)

coders = {}
for name, weights in (("anchors", (1.0, 1.0, 1.0, 1.0)), ("regions", (10.0, 10.0, 5.0, 5.0))):
    coder = utils.BoxCoder(weights)
    some = anchors[100:105]
    deltas = torch.randn(5, 4) * 2
    deltas[0, 2] = 50.0
    coders[name] = {
        "encoded": coder.encode_single(people, some).tolist(),
        "deltas": deltas.tolist(),
        "decoded": xywh(coder.decode_single(deltas, some)),
    }

overlaps = box_iou(people, anchors)
matched = {
    "anchors": utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps).tolist(),
    "regions": utils.Matcher(0.5, 0.5, allow_low_quality_matches=False)(overlaps).tolist(),
}

network = RegionProposalNetwork(
    generator, RPNHead(1, 6), 0.7, 0.3, 256, 0.5,
    pre_nms_top_n={"training": 120, "testing": 120}, post_nms_top_n={"training": 25, "testing": 25}, nms_thresh=0.7)
scores = torch.randn(len(anchors)) * 2
deltas = torch.randn(len(anchors), 4) * 0.5
boxes = network.box_coder.decode(deltas, [anchors])
proposals, _ = network.filter_proposals(boxes.view(1, -1, 4), scores.view(1, -1), [(HEIGHT, WIDTH)], [len(anchors)])

golden = {
    "people": xywh(people),
    "anchors": xywh(anchors),
    "coders": coders,
    "matched": matched,
    "scores": scores.tolist(),
    "deltas": deltas.tolist(),
    "proposals": xywh(proposals[0]),
}
rounded = json.loads(json.dumps(golden), parse_float=lambda text: float(f"{float(text):.7g}"))
path = Path(__file__).with_suffix(".json")
path.write_text(json.dumps(rounded) + "\n")
print(path, path.stat().st_size, len(proposals[0]), {k: (max(v), sum(x >= 0 for x in v), sum(x == -2 for x in v)) for k, v in matched.items()})
