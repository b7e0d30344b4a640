"""The whole reference run by one command: text, pretraining, a pause, anneal, every measurement, and the report."""
