"""Classify images with an exported ensemble; needs numpy, pillow and onnxruntime, not torch and not squint.

Usage: python predict_onnx.py model.onnx IMAGE...
"""

import json
import secrets
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image

# Without fresh entropy every process would draw the same noise, and an attacker would know it.
ort.set_seed(secrets.randbits(31))
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
card = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
mode = {1: "L", 3: "RGB"}[session.get_inputs()[0].shape[1]]
for path in sys.argv[2:]:
    image = Image.open(path)
    assert image.mode[0] not in "IF", f"{path} has more than 8 bits a channel, which would be clipped"
    pixels = np.atleast_3d(np.asarray(image.convert(mode), dtype=np.float32) / 255)
    outputs = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
    label = int(outputs[0][0].argmax())
    name = card["class_names"][label] if card["class_names"] else label
    flag = " FLAGGED" if card["detector"] and outputs[1][0] > card["detector"]["threshold"] else ""
    print(f"{path}: {name} {np.exp(outputs[0][0, label]):.1%}{flag}")
