"""From real handwritten digits to a pretrained, probed and fine-tuned network, in under three minutes on 2 cores.

    python train.py --config=configs/quickstart.py

MAE pretraining on digits placed at random on a 12x12 canvas (raw pixels fail there); a linear probe on its features,
beside the same network untrained and raw pixels; fine-tuning with all labels; fine-tuning with ten labels a class, and
the same from scratch with the same steps. Held-out figures stand on the screen and in the last line of metrics.jsonl,
pictures in samples/pretrain/, everything on one page in report.html.
"""

from ml_collections import ConfigDict

TAKE_ENCODER = {"stage": "pretrain", "table": (("params/model/encoder/(?!norm/)(.*)", r"params/model/\1"),)}


def get_config():
    few_labels = {"data.options.labels_per_class": 10, "batch_size": 64}
    return ConfigDict(
        {
            "stages": (
                {
                    "name": "pretrain",
                    "config": "configs/mae.py",
                    "summary": {
                        "test/pixel_baseline_accuracy": "test/pixel_baseline_accuracy",
                        "test/probe_accuracy": "test/probe_accuracy",
                        "test/probe_random_accuracy": "test/probe_random_accuracy",
                    },
                },
                {
                    "name": "finetune",
                    "config": "configs/vit.py",
                    "take": TAKE_ENCODER,
                    "summary": {"test/finetune_accuracy": "test/accuracy"},
                },
                {
                    "name": "fewlabel_finetune",
                    "config": "configs/vit.py",
                    "overrides": few_labels | {"optimizer.learning_rate": 2e-3},  # from scratch this rate does worse
                    "take": TAKE_ENCODER,
                    "summary": {"test/fewlabel_finetune_accuracy": "test/accuracy"},
                },
                {
                    "name": "fewlabel_scratch",
                    "config": "configs/vit.py",
                    "overrides": few_labels,
                    "summary": {"test/fewlabel_scratch_accuracy": "test/accuracy"},
                },
            )
        }
    )
