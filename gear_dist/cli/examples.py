"""Examples at the end of each command's help page. Tests parse them all."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": (
        "gear-dist quickstart",
        "gear-dist quickstart --data photos --run-name photos stages.joint.steps=2000",
    ),
    "train": (
        "gear-dist train configs/demo.yaml run.name=first data.train=s3://gear/train",
        "gear-dist train configs/stage/joint.yaml configs/tokenizer/lfq.yaml "
        "configs/generator/l.yaml data.train=s3://gear/train",
        "gear-dist train configs/demo.yaml data.train=shards/train --dry-run",
    ),
    "plan": (
        "gear-dist plan configs/stage/joint.yaml configs/generator/l.yaml engine.zero_stage=2 "
        "--gpus 64",
    ),
    "sample": (
        "gear-dist sample runs/demo",
        "gear-dist sample runs/demo --classes 0,3 --count 16 --seed 1 --out grid.png",
        "gear-dist sample runs/demo --num 50000 --out s3://results/demo --guidance 1",
        "gear-dist sample runs/demo --per-class 50 --out samples --workers 4",
    ),
    "look": (
        "gear-dist look guidance runs/demo --guidance 1,2,4 --temperature 0.8,1",
        "gear-dist look interpolation runs/demo --classes 0,5 --seed 1",
        "gear-dist look interpolation runs/demo --classes 3 --seed 1 --to-seed 2",
        "gear-dist look neighbours runs/demo --count 16",
    ),
    "serve": (
        "gear-dist serve runs/demo",
        "gear-dist serve runs/demo --host 0.0.0.0 --port 80 --guidance 1.5 --queue 64",
    ),
    "reconstruct": ("gear-dist reconstruct runs/demo --images photos --count 16",),
    "tokenize": ("gear-dist tokenize runs/demo --images photos --out codes",),
    "import": ("gear-dist import vq_ds16_c2i.pt c2i_B_256.pt --out llamagen-b",),
    "export": (
        "gear-dist export runs/demo --out demo-model --layout public",
        "gear-dist export runs/demo/checkpoints/step-00001000-5e1f09ab-1a2b3c --out demo-1000",
    ),
    "evaluate": ("gear-dist evaluate runs/demo --images-per-class 200",),
    "reproduce": ("gear-dist reproduce configs/convergence.yaml run.threads=2 --jobs 1",),
    "report": ("gear-dist report runs/demo",),
    "teacher": ("gear-dist teacher shards/train --out teacher.safetensors",),
    "features": (
        "gear-dist features configs/text/blip3o-60k.yaml data.train=s3://gear/blip3o/train "
        "stages.init_from=gpic-1b data.caption_features=/scratch/features",
    ),
    "words": ("gear-dist words shards/train --out words.json",),
    "shard": (
        "gear-dist shard photos shards",
        "gear-dist shard table.parquet s3://gear/pairs --kind urls --rate 50",
    ),
    "verify": ("gear-dist verify s3://gear/train --sample 10 --decode",),
    "repair": ("gear-dist repair shards/train --source photos",),
    "stats": ("gear-dist stats shards/train --html stats.html",),
    "preview": ("gear-dist preview shards/train --out preview.png",),
    "sample-corpus": ("gear-dist sample-corpus images --size 32 --train 2000 --validation 200",),
    "store": (
        "gear-dist store start",
        'eval "$(gear-dist store env)"',
        "gear-dist store check s3://gear/scratch",
    ),
    "doctor": ("gear-dist doctor --store s3://gear/train --root /scratch/runs",),
}
"""Command lines as one would type them, by command."""
