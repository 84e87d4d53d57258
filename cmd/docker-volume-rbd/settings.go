package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// setting is one environment variable. config.json and the README bear the
// same table; a test holds the three together.
type setting struct {
	name  string
	value string // default
	about string
}

// The names in capitals with RBD_CONF_ and VOLUME_ are those of wetopi's and
// vpaprots' plugins.
var settings = []setting{
	{"LOG_LEVEL", "info", "error, warn, info or debug; or 0 to 3"},
	{"RBD_CONF_POOL", "rbd", "pool of the images"},
	{"RBD_CONF_NAMESPACE", "", "namespace in the pool"},
	{"RBD_POOLS", "", "further places for volumes, separated by blanks: POOL or POOL/NAMESPACE; options pool and namespace choose"},
	{"RBD_CONF_CLUSTER", "ceph", "name of the cluster: the configuration is /etc/ceph/NAME.conf"},
	{"RBD_CONF_KEYRING_USER", "client.docker", "Ceph user; its keyring is /etc/ceph/NAME.USER.keyring"},
	{"RBD_MAPPER", "auto", "krbd (the kernel's client), fuse (librbd in userspace), or auto: krbd where the kernel has it"},
	{"RBD_MS_MODE", "", "how krbd speaks with Ceph: legacy, crc, secure, prefer-crc, prefer-secure; empty = prefer-crc where kernel and monitors can, else legacy"},
	{"NODE_NAME", "", "name of this node in guards and messages; empty = the host's name"},
	{"MOUNT_OPTIONS", "", "mount options of volumes of the filesystem VOLUME_FSTYPE that have none of their own"},
	{"VOLUME_FSTYPE", "ext4", "default of option fstype"},
	{"VOLUME_MKFS_OPTIONS", "", "default of option mkfsOptions, for the filesystem VOLUME_FSTYPE only"},
	{"VOLUME_SIZE", "512", "default of option size"},
	{"VOLUME_ORDER", "", "default of option order"},
	{"VOLUME_OBJECT_SIZE", "", "default of option object-size"},
	{"VOLUME_DATA_POOL", "", "default of option data-pool"},
	{"VOLUME_STRIPE_UNIT", "", "default of option stripe-unit"},
	{"VOLUME_STRIPE_COUNT", "", "default of option stripe-count"},
	{"VOLUME_IMAGE_FEATURE", "", "default of option image-feature"},
	{"VOLUME_ENCRYPTION", "", "default of option encryption"},
	{"VOLUME_PASSPHRASE", "", "default of option passphrase"},
	{"VOLUME_TRASH", "24h", "for how long a removed volume can be restored: 90m, 24h, 7d; 0 = its data is deleted at once"},
}

// optionDefaults are the settings that stand in for options.
var optionDefaults = map[string]string{
	"MOUNT_OPTIONS":        volume.OptMountOptions,
	"VOLUME_FSTYPE":        volume.OptFSType,
	"VOLUME_MKFS_OPTIONS":  volume.OptMkfsOptions,
	"VOLUME_SIZE":          volume.OptSize,
	"VOLUME_ORDER":         volume.OptOrder,
	"VOLUME_OBJECT_SIZE":   volume.OptObjectSize,
	"VOLUME_DATA_POOL":     volume.OptDataPool,
	"VOLUME_STRIPE_UNIT":   volume.OptStripeUnit,
	"VOLUME_STRIPE_COUNT":  volume.OptStripeCount,
	"VOLUME_IMAGE_FEATURE": volume.OptFeatures,
	"VOLUME_ENCRYPTION":    volume.OptEncryption,
	"VOLUME_PASSPHRASE":    volume.OptPassphrase,
}

// read takes the settings from the environment.
func read(getenv func(string) string) map[string]string {
	values := map[string]string{}
	for _, s := range settings {
		values[s.name] = s.value
		if v := getenv(s.name); v != "" {
			values[s.name] = v
		}
	}
	return values
}

// defaults are the settings as the driver wants them, by option.
func defaults(values map[string]string) map[string]string {
	d := map[string]string{}
	for name, option := range optionDefaults {
		if v := values[name]; v != "" {
			d[option] = v
		}
	}
	return d
}

// parseLevel reads the names of logrus and the numbers of older plugins.
func parseLevel(value string) (logrus.Level, error) {
	if n, err := strconv.Atoi(value); err == nil && n >= 0 && n <= 3 {
		return logrus.ErrorLevel + logrus.Level(n), nil
	}
	level, err := logrus.ParseLevel(value)
	if err != nil {
		return logrus.InfoLevel, fmt.Errorf("setting LOG_LEVEL=%q: allowed are error, warn, info, debug, or 0 to 3", value)
	}
	return level, nil
}

// maxTrash is more than anybody will want.
const maxTrash = 10 * 365 * 24 * time.Hour

// parseTrash reads a duration; days are Go's own no unit.
func parseTrash(value string) (time.Duration, error) {
	text := value
	if days, ok := strings.CutSuffix(value, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			text = strconv.FormatUint(24*n, 10) + "h"
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxTrash || d > 0 && d < time.Second {
		return 0, fmt.Errorf("setting VOLUME_TRASH=%q: allowed is a time such as 90m, 24h or 7d, or 0", value)
	}
	return d, nil
}

// parsePlaces reads where volumes may be; the first is where they are by default.
func parsePlaces(values map[string]string) ([]backend.PoolSpec, error) {
	places := []backend.PoolSpec{{Pool: values["RBD_CONF_POOL"], Namespace: values["RBD_CONF_NAMESPACE"]}}
	for text := range strings.FieldsSeq(values["RBD_POOLS"]) {
		pool, space, both := strings.Cut(text, "/")
		place := backend.PoolSpec{Pool: pool, Namespace: space}
		if pool == "" || both && space == "" || strings.ContainsAny(space, "/,") || strings.Contains(pool, ",") {
			return nil, fmt.Errorf("setting RBD_POOLS=%q: %q is neither POOL nor POOL/NAMESPACE", values["RBD_POOLS"], text)
		}
		if !slices.Contains(places, place) {
			places = append(places, place)
		}
	}
	return places, nil
}
