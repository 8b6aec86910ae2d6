"""The flags of the command line, and what `--help` says of them and of the modes."""

from typing import NamedTuple

MODES = ("train", "prepare", "eval", "predict", "export", "report", "serve")
DEFAULT_CONFIG = "configs/paper_birds.py"


class Flag(NamedTuple):
    """What `--help` says of a flag, and in which modes it has a meaning."""

    modes: tuple[str, ...]
    value: str
    help: str


# One line a flag. `parse` tells who gives one to a mode that has no use for it.
FLAGS = {
    "config": Flag(
        ("train", "prepare"),
        "FILE",
        f"what to run; default {DEFAULT_CONFIG}. Those that ship go by their names, too: cub",
    ),
    "config.GROUP.FIELD": Flag(
        ("train", "prepare"), "VALUE", "any field of it, e.g. --config.train.batch_size=32; all are in docs/config.md"
    ),
    "workdir": Flag(
        tuple(mode for mode in MODES if mode != "prepare"),
        "DIR",
        "where the run lives; default runs/<the config's name>",
    ),
    "images": Flag(
        ("predict", "eval"),
        "PATH",
        "predict: a folder of images, in any depth, or an image; eval: labelled photos, all of which are measured, in "
        "one folder per class or as a table",
    ),
    "output": Flag(
        ("prepare", "predict", "eval", "export", "report"),
        "PATH",
        "what to write; prepare: a picture, default contact_sheet.jpg; predict: a file, default predictions.csv, or "
        ".jsonl; eval with --images: default evaluation.json, and .csv beside it; export: a new folder, default "
        "export; report: default report.html in the run's folder",
    ),
    "host": Flag(("serve",), "HOST", "where to listen; default 127.0.0.1, which only this machine reaches"),
    "port": Flag(("serve",), "N", "at which port; default 8000; 0: a free one"),
    "compare": Flag(("report",), "DIR", "other runs to set beside it, one or several"),
    "unknown_classes": Flag(
        ("eval",), "HOW", "with --images, photos of classes that the run does not know: refuse (default) or skip"
    ),
    "gate": Flag(
        ("predict", "eval"), "P", "with --images: a second look only where the first is less sure than P, from 0 to 1"
    ),
    "top": Flag(("predict",), "K", "how many classes to tell of each view; default 5"),
    "overlays": Flag(("predict",), "DIR", "a new folder for pictures of what the model looked at"),
    "coordinator": Flag(("train", "eval"), "HOST:PORT", "several processes elsewhere: where process 0 is reached"),
    "processes": Flag(("train", "eval"), "N", "with --coordinator: how many there are"),
    "process": Flag(("train", "eval"), "I", "with --coordinator: which one this is, from 0"),
}
SWITCHES = {
    "fast": Flag(("predict", "eval"), "", "with --images: the first look alone, in half the time"),
    "unknown": Flag(
        ("predict", "eval", "serve"),
        "",
        "mark images that are none of the run's classes, by its threshold (docs/predict.md)",
    ),
    "multiprocess": Flag(
        ("train", "eval"),
        "",
        "this is one of several processes, which TPU metadata, SLURM, Open MPI or Kubernetes know",
    ),
}
SEVERAL = ("compare",)  # take more than one value
ALWAYS = ("config", "config.GROUP.FIELD")  # taken by all modes, told by the help of those that need them

DESCRIPTIONS = {
    "train": """\
Classifies images by two looks: attention maps on a coarse view find where to look again. This trains such a model, or
goes on with a run that was stopped; --mode=eval measures the last checkpoint of a run on its test part, and
--mode=predict says what a run's model sees in a folder of images. `--mode=MODE --help` has the flags of each.""",
    "prepare": """\
Makes the data set of a config ready before anything is trained on it: fetches and prepares it, which a start of the
training does as well, prints how many classes and photos there are, beside those that are published, and writes a
contact sheet to look at. It can be stopped; the same command goes on.""",
    "eval": """\
Measures the last checkpoint of the run in --workdir on the test part of its data, and changes nothing in it; with
--images on other labelled photos. It needs no --config: the run has kept its own. What changes no result may be given
otherwise, such as the batch size.""",
    "export": """\
Writes the model of the run in --workdir into a new folder, to be used without this program: StableHLO for JAX alone,
ONNX, the weights as safetensors, class names and preprocessing, and a model card. docs/export.md has examples.""",
    "predict": """\
Says what the model of the run in --workdir sees in each image of a folder: a CSV file with the likeliest classes and
the box of the second look, and pictures of it. It needs no --config: the run has kept its own.""",
    "report": """\
Writes report.html into the folder of the run in --workdir: one file, without a network, of what the run was, what came
of it and what it looked at. It needs no --config: the run has kept its own. The test part is looked at once more.""",
    "serve": """\
Shows the model of the run in --workdir as a page for a browser of this machine, and answers programs (openapi.json).
It needs no --config: the run has kept its own.""",
}
EXAMPLES = {
    "export": """\
examples:
  python launch.py --mode=export --workdir runs/mine --output mine
      writes mine/model.stablehlo, model.onnx, model.safetensors, model.json and README.md""",
    "train": """\
examples:
  python launch.py
      the embedded data set, drawn birds: 2.5 to 5 minutes on two CPU cores; the run is in runs/paper_birds
  python launch.py --config configs/folder.py --config.dataset.path=photos --workdir runs/mine
      your own photos, one folder per class
  python launch.py --mode=predict --workdir runs/mine --images new
      predictions for a folder of images""",
    "prepare": """\
examples:
  python launch.py --mode=prepare --config configs/cub.py
      fetches CUB-200-2011 and writes contact_sheet.jpg
  python launch.py --mode=prepare --config configs/folder.py --config.dataset.path=photos
      what there is in your own photos, before you train on them""",
    "eval": """\
examples:
  python launch.py --mode=eval
      the run in runs/paper_birds
  python launch.py --mode=eval --workdir runs/mine --images new
      on all of the labelled photos in new/<class>/...; writes evaluation.json and evaluation.csv
  python launch.py --mode=eval --workdir runs/mine --config.train.eval_batch_size=16
      with less memory""",
    "predict": """\
examples:
  python launch.py --mode=predict --workdir runs/mine --images new
      writes predictions.csv
  python launch.py --mode=predict --workdir runs/mine --images new --output new.csv --overlays pictures
      and a picture for each image: box, attention, second look
  python launch.py --mode=predict --workdir runs/mine --images new --config.train.eval_batch_size=16
      with less memory""",
    "report": """\
examples:
  python launch.py --mode=report
      of the run in runs/paper_birds: runs/paper_birds/report.html
  python launch.py --mode=report --workdir runs/mine --compare runs/one runs/two
      beside two others""",
    "serve": """\
examples:
  python launch.py --mode=serve
      the run in runs/paper_birds, at http://127.0.0.1:8000
  curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
      asks it""",
}
