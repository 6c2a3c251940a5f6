"""The composition: builds the house from settings, listens, swaps configurations, reloads, drains."""
