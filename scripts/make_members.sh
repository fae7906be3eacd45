#!/usr/bin/env bash
# Train the members in engines/ on a crop cache and export them: a day on one CPU core with AMX, about five on one
# without. `make members` calls it.
# Runs are kept under runs/; called again, it goes on where it was.
#
# usage: scripts/make_members.sh CACHE [OPTION ...]
# OPTION: of every `streamer train fit`, such as --set workers=4. STREAMER: the program.
set -euo pipefail
cd "$(dirname "$0")/.."
streamer=${STREAMER:-streamer} cache=$1
shift
options=("$@")

fit() { # run, recipe, settings: what differs from the recipe
    local run=$1 recipe=$2 settings=()
    shift 2
    for setting in "$@"; do settings+=(--set "$setting"); done
    "$streamer" train fit "recipes/$recipe.toml" --cache "$cache" --run "runs/$run" --resume \
        "${settings[@]}" "${options[@]}"
}

go_on() { # run, recipe, start, settings: with statistics of batch normalisation that stay as they are
    local run=$1 recipe=$2 start=$3
    shift 3
    fit "$run" "$recipe" model.start="$start" model.batch_statistics=0 "$@"
}

export_member() { # member: the last checkpoint of the run of that name
    "$streamer" train export "runs/$1/last.pt" --cache "$cache" --name "$1"
}

# From ImageNet weights: blends that are easy to see, then those of the recipe.
for architecture in mobilenet_v2 efficientnet_lite0; do
    made=model.architecture=$architecture
    fit $architecture-1 light_start $made
    fit $architecture-2 light $made model.start=runs/$architecture-1/last.pt
done

# MobileNetV2 for sharp and for compressed video.
for member in mobilenet_v2_sharp mobilenet_v2_compressed; do
    fit $member-1 ${member/mobilenet_v2/light} model.start=runs/mobilenet_v2-2/best.pt
done
go_on mobilenet_v2_sharp-2 light_sharp runs/mobilenet_v2_sharp-1/last.pt steps=2651 seed=81 \
    optimiser.learning_rate=3e-4
go_on mobilenet_v2_compressed-2 light_compressed runs/mobilenet_v2_compressed-1/last.pt steps=2604 seed=83 \
    optimiser.learning_rate=3e-4
go_on mobilenet_v2_compressed-3 light_compressed runs/mobilenet_v2_compressed-2/last.pt steps=3300 seed=93 \
    optimiser.learning_rate=4e-4
# New kinds of fakes, each time with half of the weights kept: faces that a decoder painted, then more of other
# people's faces blended in.
"$streamer" train autoencoder --cache "$cache" --output runs/autoencoder.pt --resume
go_on_half() { # run, recipe, start, steps, seed, settings
    local run=$1 recipe=$2 start=$3 steps=$4 seed=$5
    shift 5
    go_on "$run" "$recipe" "$start" steps="$steps" seed="$seed" optimiser.learning_rate=4e-4 \
        optimiser.start_share=0.5 "$@"
}
go_on_half mobilenet_v2_compressed-4 light_compressed runs/mobilenet_v2_compressed-3/last.pt 2500 102 \
    mixture.decoded=0.5 mixture.autoencoder=runs/autoencoder.pt
swaps=(mixture.self_blended=0.7 mixture.cross_blended=1.0 mixture.dataset_fake=0.25 blend.poisson=0.15)
decoded=(mixture.decoded=0.25 mixture.autoencoder=runs/autoencoder.pt)
go_on_half mobilenet_v2_compressed light_compressed runs/mobilenet_v2_compressed-4/last.pt 2400 110 "${swaps[@]}" \
    "${decoded[@]}"
go_on_half mobilenet_v2_sharp light_sharp runs/mobilenet_v2_sharp-2/last.pt 1900 111 "${swaps[@]}"

# ResNeXt and DenseNet stages on the first stages of the light networks, with a light network as teacher.
graft() { # member, whose first stages, seed of the third run
    local made=model.architecture=$1 teacher=distillation.teacher
    fit "$1-1" graft_start "$made" model.start="runs/$2-2/best.pt" $teacher=runs/mobilenet_v2-2/best.pt
    fit "$1-2" graft "$made" model.start="runs/$1-1/last.pt" $teacher=runs/mobilenet_v2-2/best.pt
    go_on "$1-3" graft "runs/$1-2/best.pt" "$made" $teacher=runs/mobilenet_v2_compressed-2/last.pt steps=1250 \
        seed="$3" optimiser.learning_rate=5e-4
}
graft resnext_mobilenet mobilenet_v2 94
graft densenet_efficientnet efficientnet_lite0 95

# EfficientNet-Lite0, and one network from the mean of the weights of the light two, as they were then.
go_on efficientnet_lite0 light runs/efficientnet_lite0-2/best.pt model.architecture=efficientnet_lite0 steps=600 \
    seed=96 optimiser.learning_rate=3e-4
go_on mobilenet_v2 light '["runs/mobilenet_v2_compressed-3/last.pt", "runs/mobilenet_v2_sharp-2/last.pt"]' \
    input.size=224 steps=700 seed=97 optimiser.learning_rate=3e-4

# The grafted ones again, with that network as teacher; then with the new kinds of fakes and the sharp member.
graft_again() { # member, steps and seed of the one run, of the other, name of that
    local made=model.architecture=$1 rate=optimiser.learning_rate=6e-4 teacher=distillation.teacher
    go_on "$1-4" graft "runs/$1-3/last.pt" "$made" $rate $teacher=runs/mobilenet_v2/last.pt steps="$2" seed="$3"
    go_on "$6" graft "runs/$1-4/last.pt" "$made" $rate $teacher=runs/mobilenet_v2_sharp/last.pt steps="$4" seed="$5" \
        "${swaps[@]}" "${decoded[@]}"
}
graft_again resnext_mobilenet 3600 98 3300 120 resnext_mobilenet-5
graft_again densenet_efficientnet 2700 99 2400 121 densenet_efficientnet

# ResNeXt twice more, with larger input, without a teacher; the second time with stronger compression.
resnext() { # run, start, steps, seed, settings
    local run=$1 start=$2 steps=$3 seed=$4
    shift 4
    go_on "$run" light_sharp "$start" model.architecture=resnext_mobilenet model.frozen_stages=2 steps="$steps" \
        seed="$seed" blend.poisson=0.12 "$@"
}
resnext resnext_mobilenet-6 runs/resnext_mobilenet-5/last.pt 6000 130 mixture.cross_blended=0.6 \
    augment.h264.probability=0.5 "augment.h264.crf=[16, 38]" augment.resize.probability=0.3 \
    "augment.resize.face_px=[75, 280]"
resnext resnext_mobilenet runs/resnext_mobilenet-6/last.pt 6200 140 mixture.cross_blended=0.7 \
    mixture.dataset_fake=0.3 augment.h264.probability=0.6 "augment.h264.crf=[18, 41]" \
    augment.resize.probability=0.35 "augment.resize.face_px=[65, 280]"

for member in mobilenet_v2 mobilenet_v2_sharp mobilenet_v2_compressed efficientnet_lite0 resnext_mobilenet \
    densenet_efficientnet; do
    export_member $member
done
