"""Where images come from: known data sets, folders, archives, and the user's own code."""
