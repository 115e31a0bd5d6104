"""One folder an experiment; ``python -m experiments.<name> --help`` says what each takes."""
