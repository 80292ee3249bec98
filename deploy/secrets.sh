#!/bin/sh
# Makes the secrets of a deployment: ACL users of Redis with passwords of their own, the pipeline's
# URL, Ray's token, Grafana's password. What is there already is left alone.
#
#     deploy/secrets.sh FOLDER [HOST:PORT of Redis, as the Ray nodes reach it; default redis:6380]
set -eu
folder=${1:?usage: deploy/secrets.sh FOLDER [HOST:PORT]}
redis=${2:-redis:6380}
here=$(dirname "$0")

# Only this user enters the folder; inside, files are readable, since services in containers run as others.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"
if [ -e "$folder/users.acl" ]; then
  echo "$folder/users.acl exists: nothing was changed"
  exit 0
fi

password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

pipeline=$(password)
password > "$folder/auth_token"
password > "$folder/grafana_password"
printf 'redis://pipeline:%s@%s' "$pipeline" "$redis" > "$folder/redis_url"
# An ACL file holds no comments.
grep '^user' "$here/redis/users.acl" | sed "s/CHANGE-pipeline/$pipeline/" > "$folder/users.acl.new"
for user in synthesizer distiller controller exporter; do
  sed "s/CHANGE-$user/$(password)/" "$folder/users.acl.new" > "$folder/users.acl.next"
  mv "$folder/users.acl.next" "$folder/users.acl.new"
done
mv "$folder/users.acl.new" "$folder/users.acl"
echo "made auth_token, grafana_password, redis_url and users.acl in $folder"
