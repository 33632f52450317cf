"""Detection data: images with objects in boxes, read from the layouts of Pascal VOC, COCO and YOLO."""
