"""A local page over the folders that the commands write: watch runs, start them, compare answers, rate them."""
