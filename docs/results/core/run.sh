#!/usr/bin/env bash
# The runs behind docs/results/core.md: MiniLM-L6 teachers and 3- and 2-layer students on MRPC, STS-B and CoLA.
#
#   docs/results/core/run.sh ENCODER GLUE OUT [TASK SEED LAYERS METHOD]
#
# ENCODER is the folder of the pretrained encoder, GLUE the folder of the official TSV files. Without the last four
# arguments everything is run, two processes of one thread each; a run whose metrics.json is there is skipped, one that
# was stopped goes on from its checkpoint.
set -eu
encoder=$1 glue=$2 out=$3
cli=${BERT_EMD:-bert-emd}
# All that matters is named here, so that a new default of the program leaves this study as it was.
settings=(--alpha 1 --beta 1 --cost_scale absolute --learning_rate 5e-5)
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
epochs() { if [ "$1" = CoLA ]; then echo 10; else echo 5; fi; }

finetune() {
    $cli finetune --task_name "$1" --data_dir "$glue" --model_name_or_path "$encoder" --output_dir "$2" \
        --num_train_epochs "$(epochs "$1")" --learning_rate 5e-5 --seed 42 --bf16 "${@:3}"
}
distill() { # task seed layers mapping folder
    $cli distill --task_name "$1" --data_dir "$glue" --teacher_model "$out/$1/teacher" --output_dir "$5" \
        --student_layers "$3" --mapping "$4" --num_train_epochs "$(epochs "$1")" --seed "$2" --bf16 "${settings[@]}" \
        "${@:6}"
}

if [ $# -eq 7 ]; then
    task=$4 seed=$5 layers=$6 method=$7
    if [ "$method" = teacher ]; then folder=$out/$task/teacher; else folder=$out/$task/$layers-layers/$method-seed$seed; fi
    [ -f "$folder/metrics.json" ] && exit 0
    resume=()
    if compgen -G "$folder/checkpoint-*/trainer_state.json" > /dev/null; then resume=(--resume_from_checkpoint true)
    elif [ -d "$folder" ]; then resume=(--overwrite_output_dir); fi
    mkdir -p "$out/logs"
    if [ "$method" = teacher ]; then
        finetune "$task" "$folder" "${resume[@]}" > "$out/logs/$task-teacher.log" 2>&1
    else
        [ -f "$out/$task/teacher/metrics.json" ] || { echo "no teacher for $task: see $out/logs" >&2; exit 1; }
        distill "$task" "$seed" "$layers" "$method" "$folder" "${resume[@]}" \
            > "$out/logs/$task-$layers-$method-$seed.log" 2>&1
    fi
    rm -rf "$folder"/checkpoint-* "$folder/best"
    exit 0
fi

parallel() { xargs -P 2 -L 1 "$0" "$encoder" "$glue" "$out"; }
for task in MRPC STS-B CoLA; do echo "$task 42 6 teacher"; done | parallel
for cell in "1 3" "2 3" "1 2" "3 3"; do
    for task in MRPC STS-B CoLA; do
        for method in emd kd none; do echo "$task ${cell% *} ${cell#* } $method"; done
    done
done | parallel
