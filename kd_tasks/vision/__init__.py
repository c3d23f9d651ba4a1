"""Parts that several tasks share: images on disk, augmentation, data sets and their cards."""
