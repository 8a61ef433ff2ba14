"""Sources of images: known data sets, folders, archives, and the user's own code."""
