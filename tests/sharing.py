"""Train on several logical CPUs, for a test: sharing.py DEVICES STEPS OUT CONFIG, the last two a file and JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parent.parent))
from config import Config
from distribution import make_strategy
from trainer import Trainer


def trained(config, steps, strategy=None):
    """The weights after some steps on random clips, by name, and the metrics [steps, M] on the way."""
    trainer = Trainer(config, strategy)
    rng, metrics = np.random.default_rng(0), []
    for _ in range(steps):
        real = rng.integers(0, 256, (config.batch_size, config.clip_len, 16, 16, 3), dtype=np.uint8)
        metrics.append(trainer.train_step(real[trainer.rows()], 1e-3)[0])
    assert trainer.update.experimental_get_tracing_count() == 1
    trainer.refresh_statistics()
    networks = {name: getattr(trainer, name) for name in ("generator", "transition", "discriminator")}
    networks |= {f"average {name}": network for name, network in trainer.average.items()}
    weights = {f"{name}{i}": weight for name, network in networks.items()
               for i, weight in enumerate(network.get_weights())}
    return weights | dict(metrics=np.stack(metrics), state=trainer.state[1].read_value().numpy())


if __name__ == "__main__":
    devices, steps, out, config = sys.argv[1:]
    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
    strategy = make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == int(devices)
    np.savez(out, **trained(Config(**json.loads(config)), int(steps), strategy))
