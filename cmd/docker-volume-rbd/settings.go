package main

import (
	"fmt"
	"strconv"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
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
	{"VOLUME_IMAGE_FEATURE", "", "default of option image-feature"},
}

// optionDefaults are the settings that stand in for options.
var optionDefaults = map[string]string{
	"MOUNT_OPTIONS":        driver.OptMountOptions,
	"VOLUME_FSTYPE":        driver.OptFSType,
	"VOLUME_MKFS_OPTIONS":  driver.OptMkfsOptions,
	"VOLUME_SIZE":          driver.OptSize,
	"VOLUME_ORDER":         driver.OptOrder,
	"VOLUME_OBJECT_SIZE":   driver.OptObjectSize,
	"VOLUME_DATA_POOL":     driver.OptDataPool,
	"VOLUME_IMAGE_FEATURE": driver.OptFeatures,
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
