"""python evaluate.py TASK --data DIR --checkpoint RUN. All of it is in training/evaluate.py."""

from training.evaluate import main

if __name__ == "__main__":
    main()
