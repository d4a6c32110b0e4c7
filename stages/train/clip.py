"""A CLIP model trained on an export, by a recipe that a scale fixes: subsets differ, not models."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from metadata.fingerprint import digest
from metadata.keys import redacted
from metadata.storage import Storage
from pipeline.dataset import Context, Inputs
from pipeline.errors import RecipeError, StageError
from pipeline.stage import DatasetStage, Decay, NonEmpty, OneUp, Rate, ZeroUp, later, location
from stages.clip.training import CURVE, Work, train_alone, train_rank
from stages.ops.exports import numbered, summary_of


@dataclass(frozen=True, kw_only=True)
class ClipTraining(DatasetStage):
    """model.safetensors and model.json of two small towers, and the loss of every step beside them.

    Samples seen are fixed whatever the subset's size, as in DataComp, so that subsets can be
    compared; weights and batches depend on the seed, not on the stage's name. Several seeds are
    trained side by side, each to files of its own (seed-3.model.json). Killed and run again, it
    goes on from its last checkpoints and ends at the same weights, bit for bit.

    Of an image with several texts a step takes one, by a hash of seed, batch and uid. In the place
    of a text of fewer than two words it takes the first, as LaCLIP does.

    Source: CLIP (Radford et al. 2021); the scale is our own: a 0.7 M-weight residual image tower
    and a bag of hashed words and 4-grams, for minutes on one processor core (docs/training.md).
    Error: exact for one kind of processor and one version of torch.
    """

    scale: Literal["nano"] = "nano"  # the architecture; nano is two towers of 0.7 M weights
    samples_seen: OneUp = 60_160  # in all: so many whatever the rows; the default is 235 steps
    batch_size: OneUp = 256  # pairs of a step
    learning_rate: Rate = 2e-3  # its greatest, after the warm-up
    warmup_steps: ZeroUp = 20  # in which the learning rate rises
    weight_decay: Decay = 0.1  # of AdamW
    # of the towers' arithmetic; weights stay float32
    precision: Literal["bf16", "float32"] = "bf16"
    # of several texts of an image: at each step one by hash, each as likely; or always the first
    texts: Literal["uniform", "first"] = later("uniform")
    # which rows of `data`, how often, with which weight and texts: a .npy of DataComp's, a text of
    # one uid a line, or a subset file (docs/training.md)
    subset: NonEmpty | None = later(None)
    # a model each, added to the recipe's seed; several tell the noise
    seeds: tuple[int, ...] = (0,)
    # processes that share a training's batches, each with the stage's resources
    ranks: OneUp = later(1)
    # pieces that a process embeds its rows in: memory of one; the loss is still the whole batch's
    accumulate: OneUp = later(1)
    compile: bool = later(False)  # the towers, by torch.compile: minutes at first, then faster
    checkpoint_steps: OneUp = location(50)  # between two files that a killed training goes on from

    # a file for TensorBoard beside log.jsonl; needs clipmill[tensorboard]
    tensorboard: bool = location(False)

    version = 1
    determinism = "exact"
    takes = ("data",)
    gives = ("model",)
    artifacts = (("loss", f"*{CURVE}"),)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            do = "name at least one, and none twice"
            raise RecipeError(f"seeds is {list(self.seeds)}", "key `seeds`", do)
        if self.warmup_steps >= self.steps:
            raise RecipeError(
                f"warmup_steps is {self.warmup_steps}, and the training has {self.steps} steps"
                f" ({self.samples_seen:,} samples in batches of {self.batch_size})",
                "key `warmup_steps`",
                "write fewer, or more samples_seen",
            )
        if self.batch_size < self.ranks * self.accumulate:
            raise RecipeError(
                f"batch_size is {self.batch_size}, for {self.ranks} ranks of {self.accumulate}"
                " pieces each",
                "keys `ranks`, `accumulate`",
                "write fewer of them, or a larger batch",
            )

    def outside(self) -> str:
        """The digest of the subset's bytes."""
        from stages.clip.subset import subset_digest

        return subset_digest(self.subset) if self.subset is not None else ""

    def look(self) -> None:
        from stages.clip.subset import look_at

        if self.subset is not None:
            look_at(self.subset)

    def probe(self) -> tuple[float, float]:
        """Seconds of one sample in a step, and of embedding one picture, on this machine."""
        from stages.clip.probe import probed
        from stages.clip.scales import SCALES

        return probed(SCALES[self.scale].model, self.precision, int(self.resources.cpus))

    @property
    def steps(self) -> int:
        return self.samples_seen // self.batch_size

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from stages.clip.cache import cache_shard
        from stages.clip.scales import SCALES
        from stages.clip.subset import chooser_of
        from stages.clip.towers import reads

        stage = ctx.worker.stage
        dataset = summary_of(inputs.data, stage, formats=("parquet", "pixels"))
        self.refuse_few(sum(file["rows"] for file in dataset["files"]), "the export has", stage)
        model = reads(SCALES[self.scale].model)
        if dataset.get("image_size", model.image_size) != model.image_size:
            raise StageError(
                f"pictures of {dataset['image_size']} pixels, and '{self.scale}' takes"
                f" {model.image_size}",
                f"stage '{stage}', key `data`",
                f"write image_size: {model.image_size} at the stage of export.pixels",
            )
        files = numbered(dataset["files"])
        listed = self.listed(inputs.data, [file["file"] for file in files], ctx)
        ctx.say("reading captions" if dataset["format"] == "pixels" else "decoding pictures")
        choose = chooser_of(inputs.data, inputs.mask, self.subset)
        wanted = (model.image_size, model.tokenize, choose, ())
        cache = partial(cache_shard, inputs.data, ctx.folder, *wanted)
        cached = ctx.map(cache, files)
        left_out = {
            reason: sum(shard["left_out"][reason] for shard in cached)
            for reason in cached[0]["left_out"]
        }
        rows = sum(shard["rows"] for shard in cached)
        self.refuse_few(rows, f"after leaving out {left_out} there are", stage)
        facts = {"data": digest(dataset["files"]), "rows": rows, "left_out": left_out, **listed}
        if choose is not None:
            facts["mask"] = digest([shard["chosen"] for shard in cached])
        ctx.say("training")
        work = Work(settings=self, data=inputs.data, folder=ctx.folder, cached=cached, facts=facts)
        if self.ranks == 1:
            ctx.map(partial(train_alone, work), self.seeds)
        for seed in self.seeds if self.ranks > 1 else ():
            ctx.launch(partial(train_rank, work, seed), self.ranks)
        Storage(ctx.folder).delete_folder("cache")

    def listed(self, data: str, files: list[str], ctx: Context) -> dict[str, int]:
        """How many entries `subset` has, and how many of them `not_there`; nothing without one."""
        if self.subset is None:
            return {}
        from stages.clip.subset import counted, subset_digest

        stage = ctx.worker.stage
        ctx.say("finding the subset's rows")
        count = partial(counted, self.subset, subset_digest(self.subset), data, files)
        (found,) = ctx.map(count, [0])
        rows = found.pop("rows")
        if found["listed"] == found["not_there"]:
            raise StageError(
                f"no row of the data is in the subset, which names {found['listed']:,}",
                f"stage '{stage}', key `subset`: {redacted(self.subset)}",
                "name a subset of this data's pool",
            )
        self.refuse_few(rows, f"of {found['listed']:,} in the subset the data have", stage)
        return found

    def refuse_few(self, rows: int, which: str, stage: str) -> None:
        """Fewer rows than a batch: a row would be its own negative."""
        if rows < self.batch_size:
            raise StageError(
                found=f"{which} {rows:,} rows, and a batch has {self.batch_size:,}",
                where=f"stage '{stage}', key `batch_size`",
                do="select more rows, or lower `batch_size`",
            )
