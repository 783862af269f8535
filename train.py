"""accelerate launch train.py --data DIR --out RUN. All of it is in training/train.py."""

from training.train import main

if __name__ == "__main__":
    main()
