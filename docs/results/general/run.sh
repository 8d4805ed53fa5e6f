#!/usr/bin/env bash
# The runs behind docs/results/general.md: what general distillation and augmentation are worth to a thin student.
#
#   docs/results/general/run.sh ENCODER DATA OUT [STEP]
#
# ENCODER is the folder of MiniLM-L6; DATA holds glue/<TASK>/train.tsv (and glue-qnli-9k/QNLI); OUT gets everything.
# Without STEP all steps are run, two processes of one thread each where they do not wait for each other. A step is
# general, "teacher TASK", "augment TASK" or "student TASK ARM SEED" (one quoted argument). What is done is skipped,
# what was stopped goes on from its checkpoint. ARMS, SEEDS, EPOCHS, … may be set from outside.
set -eu
encoder=$1 data=$2 out=$3
read -ra cli <<< "${BERT_EMD:-bert-emd}"
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
tasks=${TASKS:-MRPC STS-B}
seeds=${SEEDS:-1 2 3}
arms=${ARMS:-fresh general augmented}
general_epochs=${GENERAL_EPOCHS:-4}
general_lr=${GENERAL_LR:-5e-4}
epochs=${EPOCHS:-3}
# All that matters is named here, so that a new default of the program leaves this study as it was.
settings=(--mapping emd --alpha 0.5 --beta 0.3 --cost_scale relative --learning_rate 1.5e-4)
shape=(--student_layers 4 --student_width 312 --student_heads 12 --student_intermediate 1200)
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$out/logs"

again() { # how to go on with a folder: what is printed are flags
    if compgen -G "$1/checkpoint-*/trainer_state.json" > /dev/null; then echo --resume_from_checkpoint true
    elif [ -d "$1" ]; then echo --overwrite_output_dir; fi
}
timed() { # name command...: its output to the log, its wall time to times/NAME; a part of a run that was stopped adds up
    local name=$1 start=$SECONDS
    mkdir -p "$out/times"
    if "${@:2}" >> "$out/logs/$name.log" 2>&1; then status=0; else status=$?; fi
    echo $((SECONDS - start)) >> "$out/times/$name"
    [ $status = 0 ] || { echo "$name failed: see $out/logs/$name.log" >&2; exit $status; }
}

if [ $# -gt 3 ]; then
    read -r step task arm seed <<< "$4"
    case $step in
    general)
        [ -f "$out/general/metrics.json" ] && exit 0
        [ -f "$out/corpus.txt" ] || timed corpus "$python" "$here/corpus.py" "$data" "$out/corpus.txt"
        [ -f "$out/corpus/corpus.json" ] || timed prepare "${cli[@]}" general-distill --teacher_model "$encoder" \
            --train_corpus "$out/corpus.txt" --clean_corpus --output_dir "$out/corpus" --prepare_only
        # shellcheck disable=SC2046
        timed general "${cli[@]}" general-distill --teacher_model "$encoder" --pregenerated_data "$out/corpus" \
            --output_dir "$out/general" "${shape[@]}" --num_train_epochs "$general_epochs" \
            --learning_rate "$general_lr" --eval_step 250 --save_steps 250 $(again "$out/general")
        rm -rf "$out"/general/checkpoint-* ;;
    teacher)
        folder=$out/$task/teacher
        [ -f "$folder/metrics.json" ] && exit 0
        # shellcheck disable=SC2046
        timed "$task-teacher" "${cli[@]}" finetune --task_name "$task" --data_dir "$data/glue" \
            --model_name_or_path "$encoder" --output_dir "$folder" --num_train_epochs 5 --learning_rate 5e-5 --seed 42 \
            --select_on holdout $(again "$folder")
        rm -rf "$folder"/checkpoint-* "$folder/best" ;;
    augment)
        mkdir -p "$out/$task"
        [ -f "$out/$task/train_aug.tsv" ] && exit 0
        timed "$task-augment" "${cli[@]}" augment --task_name "$task" --data_dir "$data/glue" \
            --model_name_or_path "$encoder" --candidates embeddings --N 3 --output_file "$out/$task/train_aug.tsv" ;;
    student)
        folder=$out/$task/$arm-seed$seed
        [ -f "$folder/metrics.json" ] && exit 0
        # As many steps for everyone, so that the augmented run differs from the one before in its data alone.
        rows=$(($(wc -l < "$data/glue/$task/train.tsv") - 1))
        steps=$(((rows + 31) / 32 * epochs))
        cache=(--cache_teacher --teacher_cache_dir "$out/cache") # not where hardly a row is read twice
        case $arm in
        fresh) more=("${shape[@]}" "${cache[@]}") ;;
        general) more=(--student_model "$out/general" "${cache[@]}") ;;
        augmented) more=(--student_model "$out/general" --aug_file "$out/$task/train_aug.tsv") ;;
        *) echo "there is no arm $arm" >&2; exit 2 ;;
        esac
        # shellcheck disable=SC2046
        timed "$task-$arm-$seed" "${cli[@]}" distill --task_name "$task" --data_dir "$data/glue" \
            --teacher_model "$out/$task/teacher" --output_dir "$folder" --seed "$seed" --max_steps "$steps" \
            "${settings[@]}" "${more[@]}" $(again "$folder")
        rm -rf "$folder"/checkpoint-* "$folder/best" ;;
    *) echo "there is no step $step" >&2; exit 2 ;;
    esac
    exit 0
fi

parallel() { tr '\n' '\0' | xargs -0 -P 2 -n 1 "$0" "$encoder" "$data" "$out"; }
{ echo general; for task in $tasks; do echo "teacher $task"; echo "augment $task"; done; } | parallel
for seed in $seeds; do
    for arm in $arms; do
        for task in $tasks; do echo "student $task $arm $seed"; done
    done
done | parallel
