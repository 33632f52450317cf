"""Detection data: images with objects in boxes, read from the layouts of Pascal VOC, COCO and YOLO.

A plug-in reads another format by making an `Annotated` of each image, and `assemble` makes the data set of them: see
docs/detection.md.
"""

from darts_sg.data.detection.annotations import Annotated, Found, assemble

__all__ = ["Annotated", "Found", "assemble"]
