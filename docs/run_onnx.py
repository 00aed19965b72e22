"""Segment one image with an exported network, without PyTorch: pip install onnxruntime Pillow

python run_onnx.py NETWORK.onnx IMAGE LABEL.png, for a file of `export.py --normalized --output classes`, of any size.
"""
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

network, image, target = sys.argv[1:]
session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
notes = session.get_modelmeta().custom_metadata_map
rgb = np.asarray(Image.open(image).convert("RGB"), np.float32)
classes = session.run(None, {"image": rgb.transpose(2, 0, 1)[None]})[0][0].astype(np.uint8)
label = Image.fromarray(classes)
label.putpalette(np.array(json.loads(notes["palette"]), np.uint8).tobytes())
label.save(target)
names = json.loads(notes["class_names"])
print(", ".join(f"{names[i]} {100 * (classes == i).mean():.1f} %" for i in np.unique(classes)))
