"""Tasks for run_parallel that end their process. In a file without torch, which each process would have to import."""
import os
import time


def die_of_two(number):
    """A task that ends its process, if its number is 2: as a crash in a library would."""
    if number == 2:
        os._exit(139)
    return number


def die_beside(folder, number):
    """A task that ends its process, if its number is 0, while task 1 is under way; the others leave two files."""
    begun = folder / f"{number} {os.getpid()}"
    if number == 0:
        while not list(folder.glob("1 *")):
            time.sleep(0.01)
        os._exit(139)
    begun.touch()
    time.sleep(0.5 if number == 1 else 0)
    begun.with_suffix(".done").touch()


def always_die():
    os._exit(139)
