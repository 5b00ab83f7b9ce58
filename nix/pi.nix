# An example: a Raspberry Pi (3, 4 or 5) that is the cache of a house and nothing else.
{ ... }:
{
  networking.hostName = "snowberry";
  services.snowberry = {
    enable = true;
    openFirewall = true;
  };
  # mDNS is the cache's own.
  services.resolved.extraConfig = "MulticastDNS=no";
  services.journald.extraConfig = "Storage=volatile";
  system.stateVersion = "25.11";
}
