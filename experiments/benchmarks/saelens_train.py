"""Trains an autoencoder (topk, batchtopk, matryoshka) by SAELens's own trainer, in an interpreter that has sae-lens and nothing of ours.

    PYTHON saelens_train.py ROWS.safetensors OUT FEATURES K LEARNING_RATE [KIND [SEED]]

The rows (tensor "x") are read once, in order, in batches of 1024. OUT gets SAELens's files. Prints the processor seconds of the training.
"""

import sys
import time
import warnings

import torch
from safetensors.torch import load_file

warnings.simplefilter("ignore")


def main() -> None:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.set_num_threads(1)
    kind = sys.argv[6] if len(sys.argv) > 6 else "topk"
    seed = sys.argv[7] if len(sys.argv) > 7 else "0"
    torch.manual_seed(int(seed))
    rows, out, m, k, lr = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), float(sys.argv[5])
    x = load_file(rows)["x"]
    steps = len(x) // 1024
    sizes = {"d_in": x.shape[1], "d_sae": m, "k": k}
    groups = [m // 16, m // 8, m // 4, m // 2, m]  # ours
    match kind:
        case "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
        case "batchtopk":
            sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes))
        case "matryoshka":
            sae = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(**sizes, matryoshka_widths=groups))
        case _:
            raise SystemExit(f"No kind {kind!r}.")
    config = SAETrainerConfig(
        total_training_samples=steps * 1024, train_batch_size_samples=1024, lr=lr, lr_end=lr / 10, lr_decay_steps=steps // 5
    )
    trainer = SAETrainer(config, sae, data_provider=iter(x[: steps * 1024].split(1024)))
    start = time.process_time()
    for rows_of_step in x[: steps * 1024].split(1024):
        trainer._train_step(sae, rows_of_step)
        trainer.n_training_steps += 1
    print(time.process_time() - start)
    sae.save_inference_model(out)


if __name__ == "__main__":
    main()
