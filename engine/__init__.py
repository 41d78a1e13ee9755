"""Training, evaluation and reports: takes datasets and networks as built."""
