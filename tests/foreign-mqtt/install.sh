#!/bin/sh
# Installs one of the foreign MQTT clients by name into target/foreign-mqtt and prints the command that runs its judge,
# one word a line: install.sh paho|mqttjs|rumqttc. Says why when it cannot, and fails.
set -eu
cd "$(dirname "$0")"
here=$PWD
place=${HOLDFAST_FOREIGN_MQTT:-$here/../../target/foreign-mqtt}
mkdir -p "$place"
place=$(cd "$place" && pwd)

PAHO=2.2.0
MQTTJS=5.16.0

case "$1" in
paho)
    python=$place/paho/bin/python3
    if ! "$python" -c 'import paho.mqtt.client' 2>/dev/null; then
        python3 -m venv "$place/paho" >&2
        "$place/paho/bin/pip" install --quiet --disable-pip-version-check "paho-mqtt==$PAHO" >&2
    fi
    printf '%s\n%s\n' "$python" "$here/paho_judge.py"
    ;;
mqttjs)
    folder=$place/mqttjs
    if [ ! -d "$folder/node_modules/mqtt" ]; then
        mkdir -p "$folder"
        npm install --prefix "$folder" --silent --no-audit --no-fund "mqtt@$MQTTJS" >&2
    fi
    # Node looks for packages beside the script.
    cp "$here/mqtt_judge.mjs" "$folder/mqtt_judge.mjs"
    printf '%s\n%s\n' "$(command -v node)" "$folder/mqtt_judge.mjs"
    ;;
rumqttc)
    cargo build --locked --quiet --manifest-path "$here/Cargo.toml" --target-dir "$place/rumqttc" >&2
    printf '%s\n' "$place/rumqttc/debug/foreign-mqtt"
    ;;
*)
    echo "install.sh paho|mqttjs|rumqttc" >&2
    exit 2
    ;;
esac
