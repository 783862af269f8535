"""From shards to a trained, evaluated model.

stream/         shards -> batches, exactly resumable
model/          CrossMAE and its losses
config.py       what a run can be told
train.py        the loop
checkpoint.py   folders that are whole or absent
evaluate.py     from a checkpoint to numbers (evaluation/)
finetune/       encoders and a linear head, for classification
"""

import getpass
import os


def _name_the_user() -> None:
    """Gives a user whom the system does not know by name (docker run --user 54321) the number for a name.

    torch._dynamo names its cache folder after the user, and fails without a name. torchvision, optimizers and
    Accelerate import it, whether anything is compiled or not.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError: from Python 3.13 on
        os.environ["LOGNAME"] = str(os.getuid())


_name_the_user()  # before anything here imports torch
