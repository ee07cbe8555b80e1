"""Checks of a fit, by subject: values, training, weights of draws, predictions, parameters, codes."""
