"""PASCAL VOC 2012: labels, dataset, transforms, and the scripts that prepare the data."""
