"""Commands that list what there is: recipes, models, data sets, schedules, and this machine."""
